"""The rehearsal stands on torch's internals, so it is held with the torch for which it was made."""

from pathlib import Path

import pytest
import torch

REQUIREMENTS = Path(__file__).parents[2] / "requirements.txt"


def why_not(torch_version: str) -> str:
    """Why there is no rehearsal with this torch; empty where there is one."""
    lines = REQUIREMENTS.read_text(encoding="utf-8").splitlines()
    tested = next(line for line in lines if line.startswith("torch==")).removeprefix("torch==")
    if torch_version.split("+")[0] == tested:
        return ""
    return f"the rehearsal of devices stands on internals of torch {tested}, and this is torch {torch_version}"


@pytest.fixture(scope="session", autouse=True)
def tested_torch():
    if reason := why_not(torch.__version__):
        pytest.skip(reason)
