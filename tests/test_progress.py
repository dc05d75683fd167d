"""What a run counts: one object, held, saved and read again; and the speed that is printed."""

import dataclasses
import re

import pytest
import torch

from config import PRESETS, UserError
from phases import PHASES, STATE_NAME
from run import progress as progress_module
from run import run as run_module
from run.progress import Progress
from run.records import StepRows
from run.run import Run
from run.run_state import RunState, read_run_state, write_run_state
from training.machine import Machine
from training.plan import make_plan
from training.ranks import OneProcess, Ranks


class Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (progress_module, run_module):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def run(tmp_path, clock):
    class History:
        def write(self, event, **values):
            pass

    config = PRESETS["tiny"]
    plan = make_plan(config, config.dense_geometry(101), Machine(torch.device("cpu")))
    return Run(config, None, [], plan, tmp_path, History())


def test_every_counter_is_saved_and_read_again(tmp_path):
    counted = Progress(7, 1792, 2.5e9, 2, 1, {"phase1_final": 3.25}, 12.5, 4.5)
    blank = dataclasses.asdict(Progress())
    assert all(value != blank[name] for name, value in dataclasses.asdict(counted).items()), "each is told apart"
    write_run_state(RunState({}, {}, {}, progress=counted), tmp_path)
    assert read_run_state(tmp_path).progress == counted


def test_a_state_without_a_counter_or_of_another_format_is_refused_by_name(tmp_path, monkeypatch):
    state = RunState({}, {}, {})
    with monkeypatch.context() as patch:
        patch.setattr(dataclasses, "asdict", lambda progress: {"steps": 0})
        write_run_state(state, tmp_path)
    with pytest.raises(UserError, match="is no run state of this version"):
        read_run_state(tmp_path)
    for other in (2, 5, 7):  # 5 knows nothing of settings that auto has settled
        with monkeypatch.context() as patch:
            patch.setattr("run.run_state.FORMAT", f"bilateral-growth-run/{other}")
            write_run_state(state, tmp_path)
        with pytest.raises(
            UserError,
            match=f"{STATE_NAME} is no run state of this version .bilateral-growth-run/6.: another one wrote it "
            f".bilateral-growth-run/{other}.; go on with that one, or start again with --overwrite",
        ):
            read_run_state(tmp_path)


def test_clocks_run_on_through_a_stop_without_the_time_between(clock):
    progress = Progress(seconds=50.0, phase_seconds=9.0)
    clock.now += 5
    progress.begin_phase(progress.phase_seconds)
    clock.now += 2
    progress.count_step(256, 1e9)
    assert (progress.seconds, progress.phase_seconds) == (57.0, 11.0)


def test_skips_in_a_row_begin_anew_after_a_step_that_was_taken():
    progress = Progress()
    for is_skipped in (True, True, False, True):
        progress.count_skips(is_skipped)
    assert (progress.skipped_steps, progress.skipped_in_a_row) == (3, 1)


def test_the_step_line_ends_with_the_speed_of_steps_alone(run, clock, capsys):
    rows = StepRows(run, PHASES[0])
    tokens = run.config.batch_size * run.config.context_length
    for step in range(4):
        clock.now += 0.5
        run.count_step(run.plan.models[0])
        rows.add(step, 0.01, torch.tensor(2.5), [], torch.tensor(1.0))
    with run.aside():
        clock.now += 100
    rows.write()
    speed = f"{4 * tokens / 2.0 / 1000:.3g}k"
    assert re.fullmatch(
        rf"  step    3 \| loss 2\.5000 \| 2\.0s \| {re.escape(speed)} tokens/s\n", capsys.readouterr().out
    )


def test_one_process_and_many_are_asked_alike():
    public = {name for name in vars(OneProcess) if not name.startswith("_")} - {
        "size",
        "number",
        "is_first",
        "is_alone",
    }
    assert public <= vars(Ranks).keys(), "each has its version for many"
    assert {name for name in vars(Ranks) if not name.startswith("_")} - public == {"mesh"}
