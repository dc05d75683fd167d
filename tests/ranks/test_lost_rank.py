"""A rank that dies or hangs: the others say so and leave, the run goes on by hand or by torchrun."""

import os
import shutil
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest

from run import saver, state_shards
from run.compare import differences as parted
from tests.ranks.worlds import STEPS, differences, signal_after
from training import torchrun
from training.ranks import team

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_when_one_is_killed_the_others_say_so_and_it_goes_on(world, two, tmp_path):
    began = time.monotonic()
    first, second = world.run(2, tmp_path / "run", prepare=lambda: signal_after(STEPS + 2, 1, signal.SIGKILL))
    assert second.code == -signal.SIGKILL and first.code == torchrun.RANK_LOST == 5
    assert time.monotonic() - began < 60
    (line,) = first.err.splitlines()
    assert line.startswith(f"error: rank 0: another rank is gone, or did not answer in time, after {STEPS + 2} steps")
    assert "go on with: torchrun --nproc-per-node=2 train_tinystories.py --resume" in line
    assert [outcome.code for outcome in world.resume(2, tmp_path / "run")] == [0, 0]
    assert list(parted(two, tmp_path / "run")) == [], "bit for bit"


def test_one_that_hangs_is_given_up(world, tmp_path):
    def prepare():
        torchrun.PATIENCE = {"cpu": timedelta(seconds=5)}
        signal_after(2, 1, signal.SIGSTOP)

    first, second = world.begin(2, tmp_path / "run", prepare=prepare)
    outcome = first.finish()
    second.signal(signal.SIGKILL)
    second.finish()
    assert outcome.code == torchrun.RANK_LOST and "did not answer in time" in outcome.err


# Every step is saved here. Rank 0 is killed in between; what it has written then is what it had.
POINTS = {
    "while shards are written": lambda: kill_at(state_shards, "checksums_of"),
    "before the state names them": lambda: kill_at(state_shards, "name_the_folder"),
    "before the old ones are deleted": lambda: kill_at(sys.modules["run.run_state"], "forget_shards"),
}


def kill_at(module, name: str) -> None:
    """At the third time that rank 0 comes by."""
    original, calls = getattr(module, name), 0

    def deadly(*arguments, **named):
        nonlocal calls
        calls += 1
        if calls == 3 and team().is_first:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    saver.LARGEST_SHARE = float("inf")
    setattr(module, name, deadly)


@pytest.mark.parametrize("point", POINTS)
def test_killed_in_a_save_there_is_a_whole_state(point, world, one, tmp_path):
    outcomes = world.run(2, tmp_path / "run", "--save-every", "0", prepare=POINTS[point])
    assert [outcome.code for outcome in outcomes] == [-signal.SIGKILL, torchrun.RANK_LOST]
    outcome = world.resume(1, tmp_path / "run")[0]
    assert outcome.code == 0 and "Going on with the run" in outcome.out
    assert max(differences(one, tmp_path / "run").values()) <= 1e-5
    assert not list((tmp_path / "run").glob("run_state*"))


def test_torchrun_starts_the_ranks_again(world, two, tmp_path):
    """What a user types. The first time rank 1 dies in phase 2."""
    script = tmp_path / "script.py"
    script.write_text(
        f"import os, signal, sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "import train_tinystories\nfrom run import loop\nfrom training import torchrun\nfrom training.ranks import team\n"
        "step, calls = loop.train_step, []\n"
        "def deadly(*arguments):\n"
        "    calls.append(1)\n"
        f"    if len(calls) == {STEPS + 2} and team().number == 1 and not torchrun.restarts():\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return step(*arguments)\n"
        "loop.train_step = deadly\n"
        "sys.exit(train_tinystories.main())\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=1"]
    arguments = [*command, script, *world.arguments(tmp_path / "run"), "--overwrite"]
    result = subprocess.run([str(a) for a in arguments], capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("another rank is gone") == 1
    assert "Going on with the run" in result.stdout
    assert list(parted(two, tmp_path / "run")) == [], "bit for bit"
    shutil.rmtree(tmp_path / "run")
