import shutil
import signal
from pathlib import Path

import pytest

from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT
from tests.ranks.worlds import STEPS, World, signal_after


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> World:
    folder = tmp_path_factory.mktemp("ranks")
    (folder / "stories.txt").write_text(END_OF_TEXT.join(builtin_split()[0][:600]), encoding="utf-8")
    return World(folder)


@pytest.fixture(scope="session")
def one(world) -> Path:
    """A run of one rank, which nothing disturbed."""
    assert world.run(1, world.folder / "one")[0].code == 0
    return world.folder / "one"


@pytest.fixture(scope="session")
def two(world) -> Path:
    """The same on two ranks."""
    outcomes = world.run(2, world.folder / "two")
    assert [outcome.code for outcome in outcomes] == [0, 0], outcomes
    assert outcomes[1].out == outcomes[1].err == "", "rank 0 alone prints"
    return world.folder / "two"


@pytest.fixture(scope="session")
def stopped_four(world) -> Path:
    """The same on four ranks, of which one was sent SIGTERM in phase 2, while the liveness report was watching."""
    folder = world.folder / "stopped four"
    outcomes = world.run(4, folder, prepare=lambda: signal_after(STEPS + 2, 1, signal.SIGTERM))
    assert [outcome.code for outcome in outcomes] == [143] * 4, outcomes
    assert "stopped by SIGTERM after step 1 of phase 2, and saved; go on with:" in outcomes[0].err
    assert outcomes[2].err == ""
    return folder


@pytest.fixture(scope="session")
def four(world, stopped_four) -> Path:
    """The same on four ranks, stopped and resumed."""
    folder = shutil.copytree(stopped_four, world.folder / "four")
    outcomes = world.resume(4, folder)
    assert [outcome.code for outcome in outcomes] == [0] * 4, outcomes
    return folder
