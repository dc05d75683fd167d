import pytest

from tests.faults.runs import Workshop


@pytest.fixture(scope="session")
def shop(tmp_path_factory) -> Workshop:
    """One undisturbed run for all tests of the session."""
    return Workshop.at(tmp_path_factory.mktemp("workshop"))
