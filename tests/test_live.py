"""--tensorboard and --wandb: the history as it is written, elsewhere as well."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import train_tinystories
from config import PRESETS
from phases import HISTORY_NAME
from report.history import read_history
from run import live, loop
from run.compare import differences
from run.live import TENSORBOARD_FOLDER, Live, scalars
from tests.test_run import SMALL

QUICK = "--steps-phase1 6 --steps-phase2 4 --steps-phase3 4 --log-every 3 --eval-every 3 --sample-tokens 2".split()


def run(folder, token_cache, *flags) -> int:
    return train_tinystories.main([*SMALL, *QUICK, "--checkpoint-dir", str(folder), "--cache-dir", token_cache, *flags])


class FakeWandb(SimpleNamespace):
    """As much of wandb as is used, and what it was told, by run id."""

    def __init__(self):
        super().__init__(runs={}, began=[])

    def init(self, **given):
        self.began.append(given)
        told = self.runs.setdefault(given["id"], SimpleNamespace(rows=[], summary={}, metrics=[], finished=0))
        told.log = told.rows.append
        told.define_metric = lambda name, step_metric: told.metrics.append((name, step_metric))
        told.finish = lambda: setattr(told, "finished", told.finished + 1)
        return told


@pytest.fixture
def wandb(monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def events(folder: Path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    found = accumulator.EventAccumulator(str(folder / TENSORBOARD_FOLDER), size_guidance={"scalars": 0})
    return found.Reload()


def run_steps(rows: list[dict]) -> dict[tuple[int, int], int]:
    """The number in the run of each (phase, step)."""
    return {(row["phase"], row["step"]): n for n, row in enumerate(row for row in rows if row["event"] == "step")}


def test_event_files_hold_what_the_history_holds(tmp_path, token_cache):
    pytest.importorskip("tensorboard")
    assert run(tmp_path, token_cache, "--tensorboard") == 0
    rows, found = read_history(tmp_path / HISTORY_NAME), events(tmp_path)
    steps = [row for row in rows if row["event"] == "step"]
    for name in ("loss", "lr", "grad_norm", "tokens", "flops"):
        told = [(event.step, event.value) for event in found.Scalars(f"step/{name}")]
        assert told == [(n, pytest.approx(row[name], rel=1e-6)) for n, row in enumerate(steps)]
    number = run_steps(rows)
    evals = [(number[row["phase"], row["step"]], row["loss"]) for row in rows if row["event"] == "eval"]
    told = [(event.step, event.value) for event in found.Scalars("eval/loss")]
    assert sorted(told) == [(step, pytest.approx(loss, rel=1e-6)) for step, loss in sorted(evals)]
    assert [event.step for event in found.Scalars("boundary/jump")] == [6, 10]
    tags = found.Tags()
    assert {"verification/rope/passed", "liveness/cosine/heads", "step/smallest_expert_share"} <= set(tags["scalars"])
    assert [tag.split("/text_summary")[0] for tag in tags["tensors"]] == [f"story/phase {n}" for n in (1, 2, 3)]


def test_a_resumed_run_writes_no_step_twice(tmp_path, token_cache, monkeypatch):
    pytest.importorskip("tensorboard")
    stop_in_phase_2(monkeypatch)
    assert run(tmp_path, token_cache, "--tensorboard", "--save-every", "0") == 130
    monkeypatch.undo()
    # A process that was killed may have told more than the saved state knows of.
    killed = Live(replace(PRESETS["tiny"], tensorboard=True), tmp_path, read_history(tmp_path / HISTORY_NAME))
    for step in range(2, 9):
        killed.tell({"event": "step", "phase": 2, "step": step, "loss": 99.0})
    killed.close()
    assert 99.0 in [event.value for event in events(tmp_path).Scalars("step/loss")]
    assert train_tinystories.main(["--resume", "--checkpoint-dir", str(tmp_path)]) == 0
    losses = [row["loss"] for row in read_history(tmp_path / HISTORY_NAME) if row["event"] == "step"]
    assert len(losses) == 14
    told = [(event.step, event.value) for event in events(tmp_path).Scalars("step/loss")]
    assert told == [(n, pytest.approx(loss, rel=1e-6)) for n, loss in enumerate(losses)]


def stop_in_phase_2(monkeypatch) -> None:
    """Asks for a stop, as Ctrl-C does, in the second step of phase 2, whose row is then only in the saved state."""
    train_step, calls = loop.train_step, []

    def asked(model, *arguments):
        calls.append(model)
        if len(calls) == 8:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(model, *arguments)

    monkeypatch.setattr(loop, "train_step", asked)


def test_wandb_is_told_what_the_history_is_told(tmp_path, token_cache, wandb):
    assert run(tmp_path / "run", token_cache, "--wandb") == 0
    rows = read_history(tmp_path / "run" / HISTORY_NAME)
    (began,), (told,) = wandb.began, wandb.runs.values()
    assert began["project"] == "bilateral-growth" and began["name"] == "run" and began["config"]["d_model"] == 32
    steps = [row for row in told.rows if "step/loss" in row]
    assert [row["step/loss"] for row in steps] == [row["loss"] for row in rows if row["event"] == "step"]
    assert [row["at_step"] for row in steps] == list(range(14)) and told.metrics == [("*", "at_step")]
    assert [row["boundary/jump"] for row in told.rows if "boundary/jump" in row] == [
        row["jump"] for row in rows if row["event"] == "boundary"
    ]
    assert set(told.summary) == {f"story/phase {n}" for n in (1, 2, 3)} and told.finished == 1
    json.dumps(told.rows)


def test_a_resumed_run_goes_on_with_its_wandb_run_and_a_new_one_does_not(tmp_path, token_cache, wandb, monkeypatch):
    stop_in_phase_2(monkeypatch)
    assert run(tmp_path, token_cache, "--wandb", "--save-every", "0") == 130
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    assert train_tinystories.main(["--resume", "--checkpoint-dir", str(tmp_path)]) == 0
    (told,) = wandb.runs.values()
    assert [row["at_step"] for row in told.rows if "step/loss" in row] == list(range(14))
    assert len(wandb.began) == 2 and told.finished == 2
    assert run(tmp_path, token_cache, "--wandb", "--overwrite") == 0
    assert len(wandb.runs) == 2


@pytest.mark.parametrize("name, module", [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_missing_package_is_named_at_the_start(name, module, tmp_path, token_cache, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert run(tmp_path / "run", token_cache, f"--{name}") == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --{name} needs a package that is missing") and f"pip install {name}" in error
    assert error.count("\n") == 1 and not (tmp_path / "run").exists()


def test_wandb_that_refuses_ends_the_run_before_it_deletes_an_earlier_one(tmp_path, token_cache, wandb, capsys):
    (tmp_path / "large_moe_final.pt").write_bytes(b"precious")

    def refuse(**_):
        raise RuntimeError("No API key configured.\nUse `wandb login` to log in.")

    wandb.init = refuse
    assert run(tmp_path, token_cache, "--wandb", "--overwrite") == 2
    error = capsys.readouterr().err
    assert "--wandb could not begin: No API key configured." in error and "WANDB_MODE=offline" in error
    assert error.count("\n") == 1 and (tmp_path / "large_moe_final.pt").read_bytes() == b"precious"


def test_a_mirror_that_breaks_does_not_end_the_run(tmp_path, token_cache, wandb, capsys):
    def broken(row):
        raise ConnectionError("the network is gone")

    wandb.runs = {}
    init = wandb.init

    def begin(**given):
        told = init(**given)
        told.log = broken
        return told

    wandb.init = begin
    assert run(tmp_path, token_cache, "--wandb") == 0
    out = capsys.readouterr().out
    assert out.count("the network is gone") == 1 and "the run goes on without it" in out
    assert read_history(tmp_path / HISTORY_NAME)[-1]["event"] == "summary"


def test_the_history_is_the_same_with_and_without(tmp_path, token_cache, wandb):
    """And so are the weights: who watches changes nothing."""
    pytest.importorskip("tensorboard")
    assert run(tmp_path / "plain", token_cache) == 0
    assert run(tmp_path / "told", token_cache, "--tensorboard", "--wandb") == 0
    assert list(differences(tmp_path / "plain", tmp_path / "told")) == []


def test_scalars_of_a_row():
    row = {"event": "step", "time": 1.0, "phase": 2, "step": 3, "loss": None, "lr": 0.1, "skipped": True}
    row["expert_shares"] = [[0.5, 0.5], [0.9, 0.1]]
    assert dict(scalars(row)) == {"step/lr": 0.1, "step/skipped": 1.0, "step/smallest_expert_share": 0.1}
    assert dict(scalars({"event": "verification", "check": "rope", "to_phase": 3, "passed": False, "reason": "x"})) == {
        "verification/rope/passed": 0.0
    }


def test_rows_that_come_before_those_of_their_steps_stand_at_their_step(tmp_path):
    rows = [{"event": "step", "phase": 1, "step": n} for n in range(5)]
    mirror = Live(PRESETS["tiny"], tmp_path, rows)
    assert mirror.count({"event": "boundary", "from_phase": 1, "to_phase": 2}) == 5
    assert mirror.count({"event": "liveness", "phase": 2, "steps": 0}) == 5
    assert mirror.count({"event": "eval", "phase": 2, "step": 9}) == 14
    assert [mirror.count({"event": "step", "phase": 2, "step": n}) for n in range(2)] == [5, 6]
    assert live.asked(PRESETS["tiny"]) == [] and mirror.writers == {}
