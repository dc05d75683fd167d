"""A selection of the kill campaign (tests/faults/campaign.py), and proof that it would find a broken resume."""

import contextlib
import random

import pytest

import durable_files
from report import history
from run import loop, start
from tests.faults import kill_points
from tests.faults.kills import killed_after, killed_at, resumed
from tests.faults.runs import parted, resume
from transfer.gradient_coverage import GradientCoverage

# One of each kind; the campaign goes by all of them.
SELECTION = [
    "in_token_cache:3", "in_state:4", "before_state_rename:1", "in_history_line:20", "between_history_and_model:2",
    "between_model_and_state:3", "after_growth:1", "before_report_rename:1", "after_state_is_deleted:1",
]  # fmt: skip


@pytest.mark.parametrize("point", SELECTION)
def test_a_run_killed_here_goes_on_to_the_same_bits(point, shop, tmp_path):
    assert killed_at(shop, point, tmp_path / "killed") == []


@pytest.mark.parametrize("seed", range(2))
def test_a_run_killed_anywhere_goes_on_to_the_same_bits(seed, shop, tmp_path):
    assert killed_after(shop, random.Random(seed), tmp_path / "killed") == []


def no_moments():
    start.on_device = lambda values, device: {}


def no_pending_rows():
    rows = loop.StepRows
    loop.StepRows = lambda run, phase, pending=(): rows(run, phase)


def no_coverage():
    GradientCoverage.go_on_from = lambda self, state: None


def next_batch():
    original = start.open_run

    def skips_one(*arguments):
        run = original(*arguments)
        run.progress.steps += 1
        return run

    start.open_run = skips_one


def history_not_cut():
    def whole(path, n_bytes, crc, mirror):
        rows, crc = history.verified_rows(path)
        return history.History(path, path.stat().st_size, crc)

    start.History = whole


@pytest.mark.parametrize("fault", [no_moments, no_pending_rows, no_coverage, next_batch, history_not_cut])
def test_a_resume_that_forgets_something_is_found(fault, shop, tmp_path):
    # After step 7 of phase 2, and with the state after step 6: six rows are pending in it, the history has them
    # already, coverage is watching.
    outcome = shop.run(tmp_path / "run", prepare=lambda: kill_points.patch("between_history_and_state:7"))
    assert outcome.code < 0
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (tmp_path / "run").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    outcome = resume(tmp_path / "run", prepare=fault)
    assert outcome.code != 0 or parted(shop.expected, tmp_path / "run")
    assert resume(copy).code == 0 and parted(shop.expected, copy) == []


def test_a_state_that_is_written_in_place_is_found(shop, tmp_path):
    """Without the temporary file the state before is lost with the one that was being written."""

    @contextlib.contextmanager
    def in_place(path):
        with path.open("wb") as file:
            yield file

    def fault():
        kill_points.patch("in_state:2")
        durable_files.replacing = in_place

    outcome = shop.run(tmp_path / "run", prepare=fault)
    assert outcome.code < 0
    assert "is damaged" in resumed(shop, tmp_path)[0]
