"""The rehearsal stands on torch's internals, so it is held with the torch that it was made for."""

from pathlib import Path

import pytest
import torch

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"


@pytest.fixture(scope="session", autouse=True)
def tested_torch():
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    tested = next(line for line in lines if line.startswith("torch==")).removeprefix("torch==")
    if torch.__version__.split("+")[0] != tested:
        pytest.skip(f"the rehearsal of devices stands on internals of torch {tested}; this is {torch.__version__}")
