"""Small figures and words that must be what they say: JSON, versions, steps, warm-up, missing stories."""

import dataclasses
import json
import math

import pytest
import torch

from config import PRESETS, ModelConfig, UserError
from durable_files import write_tensors
from models import load_model, save_model
from models.files import FORMAT as MODEL_FORMAT
from models.files import read_config
from phases import STATE_NAME
from report.history import History, read_history
from run import run_state
from run.progress import Progress
from run.resume import changed_settings
from run.run_state import RunState, read_run_state, read_saved_config, write_run_state
from test_growth_checks import lively_dense_model
from tests.faults import kill_points
from tests.faults.runs import resume
from training.schedule import learning_rate

CONFIG = dataclasses.replace(PRESETS["tiny"], steps_phase1=60)


def test_every_row_of_the_history_is_json_however_deep_a_nan_lies(tmp_path):
    history = History(tmp_path / "history.jsonl")
    nan, inf = float("nan"), float("inf")
    history.write("liveness", a=nan, b=[1.5, inf, [nan]], c={"d": {"e": -inf, "f": (nan, 2)}}, g="nan", h=True)
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()

    def refuse(name):
        raise AssertionError(f"{name} is no JSON")

    row = json.loads(line, parse_constant=refuse)
    expected = {"a": None, "b": [1.5, None, [None]], "c": {"d": {"e": None, "f": [None, 2]}}, "g": "nan", "h": True}
    assert {name: row[name] for name in expected} == expected
    assert read_history(tmp_path / "history.jsonl")[0]["b"] == [1.5, None, [None]]


def saved(config: dict, folder, **changes) -> None:
    write_run_state(RunState(config, {}, {}, **changes), folder)


def test_a_state_of_another_version_is_called_that_and_not_damaged(tmp_path, monkeypatch):
    config = dataclasses.asdict(CONFIG)
    path = tmp_path / STATE_NAME
    # Another format with other fields; another format; a setting that this version has not, or has since; no state at all.
    write_tensors({"format": "bilateral-growth-run/1", "step": 3}, path)
    for read in (read_run_state, read_saved_config):
        with pytest.raises(UserError, match=r"another one wrote it .bilateral-growth-run/1.; go on with that one"):
            read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_state, "FORMAT", "bilateral-growth-run/99")
        saved(config, tmp_path)
    for read in (read_run_state, read_saved_config):
        with pytest.raises(UserError, match="another one wrote it .bilateral-growth-run/99"):
            read(tmp_path)
    for other in ({**config, "momentum": 0.9}, {name: value for name, value in config.items() if name != "seed"}):
        saved(other, tmp_path)
        with pytest.raises(UserError, match="is no run state of this version.*another one wrote it"):
            read_saved_config(tmp_path)
    write_tensors({"weights": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="is no run state of this version") as caught:
        read_saved_config(tmp_path)
    assert "damaged" not in str(caught.value) and "another one" not in str(caught.value)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match="is damaged"):
        read_run_state(tmp_path)


def test_a_model_of_another_version_is_called_that_and_not_damaged(tmp_path):
    model = lively_dense_model(ModelConfig(vocab_size=11, d_model=8, n_layers=1, n_heads=2, context_length=8))
    content = {"format": MODEL_FORMAT, "config": {**dataclasses.asdict(model.config), "window": 3}, "weights": {}}
    write_tensors(content, tmp_path / "model.pt")
    for read in (read_config, load_model):
        with pytest.raises(UserError) as caught:
            read(tmp_path / "model.pt")
        assert "damaged" not in str(caught.value) and "window" in str(caught.value)
    save_model(model, tmp_path / "model.pt")
    assert read_config(tmp_path / "model.pt") == model.config


@pytest.mark.parametrize("given, fits", [(99, False), (100, False), (101, True)])
def test_a_phase_may_have_as_many_steps_as_it_has_not_done_yet(given, fits):
    began = dataclasses.replace(CONFIG, steps_phase1=120)
    state = RunState(dataclasses.asdict(began), {}, {}, phase=1, step=100, progress=Progress(steps=100))
    changed = dataclasses.replace(began, steps_phase1=given)
    if fits:
        changed_settings(state, changed)
        return
    with pytest.raises(UserError, match=f"is {given}, but the saved run has done 100 of them; give more"):
        changed_settings(state, changed)


@pytest.mark.parametrize("steps", [5, 10, 20, 99, 100, 1000])
@pytest.mark.parametrize("warmup_steps", [0, 1, 5, 50, 10_000])
def test_a_rate_rises_to_its_peak_however_long_the_warm_up(steps, warmup_steps):
    rates = [learning_rate(step, steps, 0.0, 1.0, 0.1, warmup_steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert rates[top] == 1.0
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert top <= 0.4 * steps and rates[-1] == pytest.approx(0.1)
    assert math.isclose(rates[0], 1 / (top + 1)), "in equal steps"


def test_going_on_says_that_it_needs_the_stories(shop, tmp_path):
    stories = tmp_path / "stories.txt"
    stories.write_bytes((shop.folder / "stories.txt").read_bytes())
    flags = ["--data", stories, "--cache-dir", tmp_path / "cache"]
    assert shop.run(tmp_path / "run", *flags, prepare=lambda: kill_points.patch("between_two_steps:2")).code < 0
    stories.rename(tmp_path / "moved.txt")
    outcome = resume(tmp_path / "run")
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    assert "the stories and the tokenizer that it began with" in outcome.err and "--data" in outcome.err
    assert resume(tmp_path / "run", "--data", tmp_path / "moved.txt").code == 0
