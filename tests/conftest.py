import pytest


@pytest.fixture(scope="session")
def token_cache(tmp_path_factory) -> str:
    """One cache of the built-in stories for all runs of the session: tokenising takes seconds."""
    return str(tmp_path_factory.mktemp("token_cache"))
