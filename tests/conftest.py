import os

# Models of tests are so small that threads would wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.tokenizer_file import as_tokenizer_json


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory) -> str:
    """One cache of the built-in stories for all runs of the session: tokenising takes seconds."""
    return str(tmp_path_factory.mktemp("token_cache"))


@pytest.fixture(scope="session")
def tokenizer_json() -> bytes:
    """The built-in tokenizer as a tokenizer.json."""
    return as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT)
