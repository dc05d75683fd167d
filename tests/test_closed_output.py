"""Commands whose output nobody reads, as after `| head`: they end quietly, as Unix tools do, with exit code 141."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import train_tinystories

ROOT = Path(train_tinystories.__file__).parent
PLAN = ("train_tinystories.py", "--plan", "--preset", "tiny", "--device", "cpu")


def run(command, **how) -> subprocess.CompletedProcess:
    """With buffers, as everywhere where nobody asks for none: what is printed fails to come out later."""
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.run([sys.executable, *command], cwd=ROOT, env=buffered, timeout=300, **how)


def outcome_of(command, stdout=None, prepare=None) -> tuple[int, str]:
    """Exit code and standard error of a command that writes to `stdout`; to a pipe whose reader is gone without one."""
    if stdout is None:
        reader, stdout = os.pipe()
        os.close(reader)
    done = run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)
    os.close(stdout)
    return done.returncode, done.stderr


@pytest.mark.parametrize("command", [PLAN, ("-m", "transfer.grow", "--help")], ids=["--plan", "--help"])
def test_a_pipe_without_a_reader_ends_a_command_quietly(command):
    assert outcome_of(command) == (141, "")


def test_a_mistake_keeps_its_line_and_its_code():
    """Though a line was printed before it that nobody reads."""
    code, error = outcome_of(("train_tinystories.py", "--batch-size", "0"))
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_no_output_at_all_is_an_output_that_nobody_wants():
    assert outcome_of(PLAN, os.open(os.devnull, os.O_WRONLY), prepare=lambda: os.close(1)) == (0, "")


def test_both_outputs_may_lose_their_reader():
    reader, writer = os.pipe()
    os.close(reader)
    done = run(PLAN, stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 141
