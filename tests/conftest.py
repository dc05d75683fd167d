import os

# Models of tests are so small that threads would wait for each other longer than they compute.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import json

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


@pytest.fixture(scope="session")
def large_tokenizer_json(tokenizer_json) -> bytes:
    """The built-in tokenizer with 17 times its ids, up to 69,632: more than uint16 holds, and most of them gaps."""
    content = json.loads(tokenizer_json)
    content["model"]["vocab"] = {token: 17 * number for token, number in content["model"]["vocab"].items()}
    for token in content["added_tokens"]:
        token["id"] *= 17
        # Only of the vocabulary's own tokens the library heeds the ids.
        content["model"]["vocab"][token["content"]] = token["id"]
    return json.dumps(content).encode()


@pytest.fixture(scope="session")
def transformers(tmp_path_factory):
    """The library; code of models is copied to a folder of the tests, and the hub is not asked."""
    library = pytest.importorskip(
        "transformers", reason="transformers is in requirements-dev.txt, on Python 3.11 and newer"
    )
    with pytest.MonkeyPatch.context() as patch:
        modules = str(tmp_path_factory.mktemp("modules"))
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules)
        yield library
