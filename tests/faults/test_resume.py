"""--resume and --start-phase: what they go on with, what they refuse, and in which words."""

import dataclasses
import random
import shutil
import signal
import time

import numpy
import pytest
import torch

import train_tinystories
from config import ModelConfig, TrainingConfig
from models import load_model, save_model
from phases import PHASES, phase_of
from report.history import NEUTRAL, read_history
from run import loop, saver
from run.compare import same_model
from run.resume import MAY_DIFFER_UNTIL
from run.run_state import RunState, read_run_state
from run.saver import LARGEST_SHARE, Saver
from test_growth_checks import lively_dense_model
from tests.faults import kill_points
from tests.faults.runs import parted, resume, start
from training import outlook


@pytest.fixture(scope="module")
def stopped(shop, tmp_path_factory):
    """A run that was killed in phase 2, step 5, with the state of that moment saved."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    assert shop.run(folder, prepare=lambda: kill_points.patch("between_two_steps:5")).code == -signal.SIGKILL
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "run")


def refused(arguments, capsys) -> str:
    assert train_tinystories.main([str(argument) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_without_resume_a_folder_with_a_run_is_refused(shop, folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    error = refused(shop.arguments(folder), capsys)
    assert "holds a run already" in error and all(text in error for text in ("--resume", "another", "--overwrite"))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_resume_without_a_run_is_refused(tmp_path, capsys):
    assert "holds no saved state" in refused(["--resume", "--checkpoint-dir", tmp_path / "none"], capsys)


def test_resuming_a_complete_run_says_so(shop, capsys):
    assert train_tinystories.main(["--resume", "--checkpoint-dir", str(shop.expected)]) == 0
    assert "is complete" in capsys.readouterr().out


def test_settings_that_can_no_longer_differ_are_named_with_those_that_may(folder, capsys):
    flags = ["--seed", "7", "--n-experts", "8", "--lr-phase3", "0.5"]
    error = refused(["--resume", "--checkpoint-dir", folder, *flags], capsys)
    fixed, may = error.split("These may differ: ")
    assert "seed (saved 0, given 7)" in fixed and "n_experts (saved 4, given 8)" in fixed and "lr_phase3" not in fixed
    may = may.strip().split(", ")
    assert {"lr_phase2", "lr_phase3", "scale_factor", "log_every", "save_every", "batch_size"} <= set(may)
    assert not {"seed", "n_experts", "lr_phase1", "d_model"} & set(may)


def test_resume_and_overwrite_contradict_each_other(folder, capsys):
    error = refused(["--resume", "--overwrite", "--checkpoint-dir", folder], capsys)
    assert "overwrite is True, which deletes the run that resume goes on with" in error


def test_steps_that_are_done_cannot_be_taken_back(folder, capsys):
    assert "has done 5 of them" in refused(["--resume", "--checkpoint-dir", folder, "--steps-phase2", "5"], capsys)


def test_a_batch_that_does_not_divide_what_was_read_is_refused(folder, capsys):
    assert "no whole number" in refused(["--resume", "--checkpoint-dir", folder, "--batch-size", "7"], capsys)


def test_the_table_names_settings_that_exist():
    names = {item.name for item in dataclasses.fields(TrainingConfig)}
    assert set(MAY_DIFFER_UNTIL) <= names and set(NEUTRAL) <= names


def test_what_is_otherwise_than_before_is_in_the_history(folder):
    outcome = resume(folder, "--lr-phase3", "0.001", "--batch-size", "2", "--eval-every", "9")
    assert outcome.code == 0, outcome.err
    rows = read_history(folder / "training_history.jsonl")
    (row,) = [row for row in rows if row["event"] == "resumed"]
    assert (row["phase"], row["step"]) == (2, 5)
    assert row["changes"] == {"batch_size": [4, 2], "lr_phase3": [0.01, 0.001], "eval_every": [20, 9]}
    steps = [(row["phase"], row["step"]) for row in rows if row["event"] == "step"]
    assert steps == [(1, i) for i in range(40)] + [(2, i) for i in range(30)] + [(3, i) for i in range(30)]
    tokens = [row["tokens"] for row in rows if row["event"] == "step"]
    assert [b - a for a, b in zip(tokens, tokens[1:])] == [4 * 32] * 44 + [2 * 32] * 55
    assert "lr_phase3 0.01 → 0.001" in outcome.out


def test_looking_more_often_changes_no_model(folder, shop):
    outcome = resume(folder, "--eval-every", "9", "--log-every", "1")
    assert outcome.code == 0 and "The models will be the same" in outcome.out
    assert all(same_model(shop.expected / name, folder / name) for name in (phase.file for phase in PHASES))


def test_growth_may_be_another_until_it_is_done(folder):
    assert resume(folder, "--scale-factor", "1.5", "--extra-layers", "0").code == 0
    assert load_model(folder / "large_moe_final.pt").config.d_model == 24


def test_other_stories_are_refused_and_the_same_ones_elsewhere_are_not(shop, folder, tmp_path, capsys):
    text = (shop.folder / "stories.txt").read_text()
    (tmp_path / "elsewhere.txt").write_text(text)
    (tmp_path / "other.txt").write_text(text.replace("One day", "Two days"))
    (tmp_path / "longer.txt").write_text(text + "<|endoftext|>Tom ran.")
    flags = ["--resume", "--checkpoint-dir", folder, "--cache-dir", tmp_path / "cache"]
    for name in ("other", "longer"):
        assert "that it began with" in refused([*flags, "--data", tmp_path / f"{name}.txt"], capsys)
    outcome = resume(folder, *flags[3:], "--data", tmp_path / "elsewhere.txt", "--sample-tokens", "3")
    assert outcome.code == 0 and "The models will be the same" in outcome.out
    for name in (phase.file for phase in PHASES):
        assert same_model(shop.expected / name, folder / name)


def test_phase_3_from_its_checkpoint_alone_is_the_whole_runs_phase_3(shop, tmp_path):
    """With fresh moments the whole run's third phase has nothing but the model and the place in the stories."""
    for phase, name in ((2, "dense_model.pt"), (3, "moe_model_final.pt")):
        whole, alone = tmp_path / f"whole{phase}", tmp_path / f"alone{phase}"
        assert shop.run(whole, "--grow-optimizer", "fresh").code == 0
        alone.mkdir()
        shutil.copy(whole / name, alone)
        outcome = shop.run(alone, "--grow-optimizer", "fresh", "--start-phase", phase)
        assert outcome.code == 0, outcome.err
        first, second = (load_model(each / "large_moe_final.pt").state_dict() for each in (whole, alone))
        assert all(torch.equal(value, second[key]) for key, value in first.items())
        assert f"Phase {phase - 1} final loss" in outcome.out and "PHASE 1" not in outcome.out


def test_a_phase_cannot_start_without_its_model_or_with_another(shop, tmp_path, capsys):
    assert "no model file at" in refused(shop.arguments(tmp_path / "a", "--start-phase", 3), capsys)
    shutil.copytree(shop.expected, tmp_path / "b")
    before = {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()}
    assert "holds a run already" in refused(shop.arguments(tmp_path / "b", "--start-phase", 3), capsys)
    wrong = shop.arguments(tmp_path / "b", "--start-phase", 3, "--overwrite", "--d-model", 32)
    assert "d_model 16, here 32" in refused(wrong, capsys)
    assert {path.name: path.read_bytes() for path in (tmp_path / "b").iterdir()} == before


def test_a_phase_started_anew_can_be_killed_and_resumed(shop, tmp_path):
    for name in ("through", "killed"):
        (tmp_path / name).mkdir()
        shutil.copy(shop.expected / "moe_model_final.pt", tmp_path / name)
    assert shop.run(tmp_path / "through", "--start-phase", 3).code == 0
    killed = shop.run(tmp_path / "killed", "--start-phase", 3, prepare=lambda: kill_points.patch("after_growth:1"))
    assert killed.code < 0 and resume(tmp_path / "killed").code == 0
    assert parted(tmp_path / "through", tmp_path / "killed") == []


def test_a_run_from_an_imported_model_can_be_killed_and_resumed(shop, tmp_path):
    """Its vocabulary, residual and output matrix are in no setting; the saved state has to tell them."""
    geometry = ModelConfig(
        4104, 16, 1, 2, context_length=32, tokenizer="builtin", parallel_residual=True, rotary_share=0.5, tied=False
    )
    for name in ("through", "killed"):
        (tmp_path / name).mkdir()
        save_model(lively_dense_model(geometry), tmp_path / name / "dense_model.pt")
    assert shop.run(tmp_path / "through", "--start-phase", 2).code == 0
    for point in ("between_two_steps:5", "after_growth:1"):
        target = shutil.copytree(tmp_path / "killed", tmp_path / point)
        assert shop.run(target, "--start-phase", 2, prepare=lambda: kill_points.patch(point)).code < 0
        assert resume(target).code == 0
        assert parted(tmp_path / "through", target) == []
    assert load_model(tmp_path / "through" / "large_moe_final.pt").config.parallel_residual


def random_states():
    return torch.get_rng_state().tolist(), str(numpy.random.get_state()), random.getstate()


def test_no_run_touches_a_global_random_state(shop, tmp_path, monkeypatch):
    """So none has to be saved."""
    before = random_states()
    assert train_tinystories.main([str(a) for a in shop.arguments(tmp_path / "a")]) == 0
    assert random_states() == before
    train_step = loop.train_step

    def careless(*arguments):
        torch.rand(1)
        return train_step(*arguments)

    monkeypatch.setattr(loop, "train_step", careless)
    assert train_tinystories.main([str(a) for a in shop.arguments(tmp_path / "b")]) == 0
    assert random_states() != before


class Clock:
    """A clock that moves only when told to."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.mark.parametrize("minutes", [0.0, 1.0])
@pytest.mark.parametrize("step_seconds, save_seconds", [(0.1, 0.01), (0.1, 2.0), (30.0, 60.0), (0.001, 0.5)])
def test_saving_takes_no_more_than_its_share(minutes, step_seconds, save_seconds, tmp_path, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(saver, "time", clock)

    def write(state, folder):
        clock.now += save_seconds

    monkeypatch.setattr(saver, "write_run_state", write)
    state = RunState({}, {}, {}, weights={"w": torch.zeros(10)})
    saving, saves = Saver(tmp_path, minutes), []
    while clock.now < 5000:
        clock.now += step_seconds
        if saving.is_due(40):
            saving.save(state)
            saves.append(clock.now)
    # The first is not expected to cost what it does.
    assert saving.seconds_spent <= LARGEST_SHARE * clock.now + save_seconds
    assert len(saves) >= 0.5 * min(
        5000 / max(60 * minutes, 1e-9), LARGEST_SHARE * 5000 / save_seconds, 5000 / step_seconds
    )
    assert all(b - a >= 60 * minutes for a, b in zip(saves, saves[1:]))


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(number, code, shop, tmp_path):
    child = start(shop.arguments(tmp_path / "run", "--save-every", "60"))
    child.wait_until_it_prints("step    7")
    child.signal(number)
    outcome = child.finish()
    assert outcome.code == code and outcome.err.strip().count("\n") <= 1
    last = outcome.err.strip().splitlines()[-1]
    state = read_run_state(tmp_path / "run")
    if "after step" in last:
        assert f"after step {state.step - 1} of phase {state.phase}, and saved" in last
    assert last.endswith(f"go on with: python train_tinystories.py --resume --checkpoint-dir {tmp_path / 'run'}")
    assert resume(tmp_path / "run").code == 0 and parted(shop.expected, tmp_path / "run") == []


def test_a_second_signal_stops_at_once_and_loses_nothing(shop, tmp_path):
    def slow_save():
        original = loop.save_if_due

        def slow(run, *rest):
            if run.stop.is_asked:
                time.sleep(600)
            original(run, *rest)

        loop.save_if_due = slow

    child = start(shop.arguments(tmp_path / "run"), slow_save)
    child.wait_until_it_prints("step    7")
    child.signal(signal.SIGTERM)
    time.sleep(0.5)
    began = time.monotonic()
    child.signal(signal.SIGTERM)
    assert child.finish().code == 143 and time.monotonic() - began < 60
    assert resume(tmp_path / "run").code == 0 and parted(shop.expected, tmp_path / "run") == []


def test_a_second_run_in_the_folder_is_refused(shop, tmp_path, capsys):
    child = start(shop.arguments(tmp_path / "run"))
    child.wait_until_it_prints("PHASE 1")
    for flags in (["--overwrite"], []):
        assert "another process is training" in refused(shop.arguments(tmp_path / "run", *flags), capsys)
    assert "another process is training" in refused(["--resume", "--checkpoint-dir", tmp_path / "run"], capsys)
    assert child.finish().code == 0 and parted(shop.expected, tmp_path / "run") == []


def test_a_clock_that_goes_back_changes_nothing(shop, tmp_path):
    def backwards():
        real, began = time.time, time.time()
        time.time = lambda: 2 * began - real() - 3600

    assert shop.run(tmp_path / "run", prepare=backwards).code == 0
    assert parted(shop.expected, tmp_path / "run") == []
    times = [row["time"] for row in read_history(tmp_path / "run" / "training_history.jsonl")]
    assert times == sorted(times, reverse=True)


def test_lean_memory_is_resumed_as_well(shop, tmp_path):
    """Its momentum is bf16, and it clips by the norm of the step before."""
    lean = ["--memory", "lean", "--precision", "bf16"]
    assert shop.run(tmp_path / "through", *lean).code == 0
    killed = shop.run(tmp_path / "killed", *lean, prepare=lambda: kill_points.patch("between_two_steps:5"))
    assert killed.code < 0 and resume(tmp_path / "killed").code == 0
    assert parted(tmp_path / "through", tmp_path / "killed") == []


def size_of(folder, phase):
    config = load_model(phase.path_in(folder)).config
    return config.d_model, config.n_layers, config.n_heads


@pytest.mark.parametrize("enough, number", [(1.5, 2), (0.0, 3)])
def test_what_auto_made_of_the_steps_holds_where_the_same_command_goes_on(enough, number, shop, tmp_path):
    """Also where torchrun starts it again; what is given otherwise than at first takes its place."""
    auto = ["--grow-when", "auto", "--steps-phase1", "60", "--steps-phase2", "4", "--steps-phase3", "8"]

    def enough_tokens():
        outlook.ENOUGH_TOKENS = enough

    def killed_early():
        enough_tokens()
        kill_points.patch("between_two_steps:1")

    through = shop.run(tmp_path / "through", *auto, prepare=enough_tokens)
    assert through.code == 0 and f"all FLOPs go to phase {number}'s size" in " ".join(through.out.split())
    assert {size_of(tmp_path / "through", phase) for phase in PHASES} == {size_of(shop.expected, phase_of(number))}
    rows = read_history(tmp_path / "through" / "training_history.jsonl")
    assert [row["lr"] for row in rows if row["event"] == "step"][-1] == 0
    assert shop.run(tmp_path / "killed", *auto, prepare=killed_early).code < 0
    shutil.copytree(tmp_path / "killed", tmp_path / "longer")
    resumed = resume(tmp_path / "killed", *auto)
    assert resumed.code == 0 and "Does growth pay" not in resumed.out
    assert parted(tmp_path / "through", tmp_path / "killed") == []
    longer = resume(tmp_path / "longer", *auto, "--steps-phase3", "61")
    assert longer.code == 0 and "steps_phase3 8 → 61" in longer.out
    rows = read_history(tmp_path / "longer" / "training_history.jsonl")
    assert max(row["step"] for row in rows if row["event"] == "step" and row["phase"] == 3) == 60
