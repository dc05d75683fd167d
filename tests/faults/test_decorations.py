"""Stories, pictures, reports and mirrors that break: the models are there, the run ends with 0, and one line says what broke."""

import json
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest

import evaluate
import generate
from data.tokenizer import load_tokenizer
from data.whole_text import WholeText
from inference import checkpoint
from inference.expert_words import TokensOfExperts
from phases import HISTORY_NAME, PHASES, PICTURE_NAME, REPORT_NAME, STATE_NAME
from report.history import History, read_history
from run import liveness_watch, loop, records
from run.compare import same_model
from tests.faults import kill_points
from tests.faults.decorations import DECORATIONS, WARNING, problems_with
from tests.faults.decorations import broken as breaking
from tests.faults.runs import resume

# How often a run of three phases says so, and what is missing afterwards.
CONSEQUENCES = {
    "the story": (3, "sample"),
    "the story's tokens": (3, "sample"),
    "the comparison of stories": (2, ""),
    "liveness": (6, "liveness"),
    "the watch of new parameters": (2, ""),
    "a look at their gradients": (2, ""),
    "what they have had": (2, ""),
    "the summary": (1, ""),
    "the picture": (1, PICTURE_NAME),
    "the report": (1, REPORT_NAME),
}


def broken(*_, **__):
    raise ZeroDivisionError("it broke")


@pytest.mark.parametrize("name", DECORATIONS)
def test_a_run_ends_well_although_this_breaks(name, shop, tmp_path):
    times, missing = CONSEQUENCES[name]
    outcome = shop.run(tmp_path / "run", prepare=breaking(name, "a fault of ours"))
    assert outcome.code == 0, outcome.err
    lines = [line for line in outcome.out.splitlines() if WARNING in line]
    assert len(lines) == times and all("it broke" in line for line in lines), outcome.out
    folder = tmp_path / "run"
    assert all(same_model(shop.expected / phase.file, folder / phase.file) for phase in PHASES)
    assert not (folder / STATE_NAME).exists(), "it is complete"
    rows = read_history(folder / HISTORY_NAME)
    assert rows[-1]["event"] == "summary" and not any(row["event"] == missing for row in rows)
    assert (folder / PICTURE_NAME).exists() is (missing != PICTURE_NAME)
    assert (folder / REPORT_NAME).exists() is (missing != REPORT_NAME)
    if missing.endswith((".png", ".html")):
        assert missing not in outcome.out.splitlines()[-1], "nobody is sent to a file that is not there"


@pytest.mark.parametrize("name, error", [("the story", "memory"), ("the report", "the disk"), ("liveness", "no text")])
def test_it_may_break_in_any_way(name, error, shop, tmp_path):
    assert problems_with(shop, name, error, tmp_path / "run") == []  # the campaign has all of them


@pytest.mark.parametrize("where", ["tell_story", "liveness_report"])
def test_a_model_is_on_the_disk_before_anything_is_told_about_it(where, shop, tmp_path):
    seen = tmp_path / "seen"

    def watch():
        module = loop if where == "tell_story" else liveness_watch
        original = getattr(module, where)

        def looking(run_or_model, *rest):
            # Of the last phase alone: there is no row of it in which a story is told before its end.
            if where == "tell_story" and rest[0].number == 3:
                seen.write_text(str(rest[0].path_in(run_or_model.folder).exists()))
            if where == "liveness_report" and (tmp_path / "run" / PHASES[2].file).exists():
                seen.write_text("True")
            return original(run_or_model, *rest)

        setattr(module, where, looking)

    assert shop.run(tmp_path / "run", prepare=watch).code == 0
    assert seen.read_text() == "True"


def test_a_prompt_of_which_the_tokenizer_makes_nothing_ends_no_run(shop, tmp_path):
    """From `--prompt` it is refused in a line; the run's own is left out, and the growth checks go on without it."""
    outcome = shop.run(tmp_path / "run", prepare=lambda: setattr(records, "SAMPLE_PROMPT", ""))
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("the tokenizer makes no token of ''") == 5 and "Traceback" not in outcome.err
    rows = read_history(tmp_path / "run" / HISTORY_NAME)
    assert [row["same_story"] for row in rows if row["event"] == "boundary"] == [None, None]
    assert all(row["passed"] for row in rows if row["event"] == "verification")
    said = "Story of the grown model: not compared; the loss and the growth checks decide without it"
    assert outcome.out.count(said) == 2


def test_a_resumed_run_is_not_kept_from_its_end_by_what_broke_before(shop, tmp_path):
    def breaks():
        loop.tell_story = broken
        kill_points.patch("after_growth:1")

    assert shop.run(tmp_path / "run", prepare=breaks).code < 0
    outcome = resume(tmp_path / "run", prepare=lambda: setattr(loop, "tell_story", broken))
    assert outcome.code == 0 and outcome.out.count(WARNING) == 1, "phase 3's story alone: no other is told again"
    assert all(same_model(shop.expected / phase.file, tmp_path / "run" / phase.file) for phase in PHASES)


def test_a_mirror_that_is_gone_keeps_no_run_from_going_on(shop, tmp_path):
    """--wandb stands in the saved settings, where no flag takes it back."""

    def begins():
        told = SimpleNamespace(
            log=lambda row: None, define_metric=lambda *_, **__: None, finish=lambda: None, summary={}
        )
        sys.modules["wandb"] = SimpleNamespace(init=lambda **_: told)
        kill_points.patch("between_two_steps:5")

    def is_gone():
        sys.modules["wandb"] = None

    def refuses():
        sys.modules["wandb"] = SimpleNamespace(init=broken)

    assert shop.run(tmp_path / "run", "--wandb", prepare=is_gone).code == 2, "a new run is refused at once"
    assert shop.run(tmp_path / "run", "--wandb", prepare=begins).code < 0
    for breaks in (refuses, is_gone):
        folder = shutil.copytree(tmp_path / "run", tmp_path / breaks.__name__)
        outcome = resume(folder, prepare=breaks)
        assert outcome.code == 0 and outcome.out.count(WARNING) == 1, outcome.err


class FullDisk:
    def write(self, line):
        raise OSError(28, "No space left on device")

    def close(self):
        pass


def test_a_history_that_cannot_be_written_still_ends_the_run(shop, tmp_path):
    """It is no decoration: after a row that is torn nothing more could be told."""

    def full():
        write = History.write

        def fails(self, event, **values):
            if event == "sample":
                self._file = FullDisk()
            write(self, event, **values)

        History.write = fails

    outcome = shop.run(tmp_path / "run", prepare=full)
    assert outcome.code == 2 and "No space left" in outcome.err and WARNING not in outcome.out
    assert (tmp_path / "run" / PHASES[0].file).exists()


class Mute:
    """A tokenizer that makes nothing of any text."""

    def __init__(self):
        self._encoding = load_tokenizer("builtin")

    def encode_ordinary(self, text):
        return []

    def __getattr__(self, name):
        return getattr(self._encoding, name)


@pytest.mark.parametrize("command", ["generate", "compare", "evaluate"])
def test_text_of_which_the_tokenizer_makes_nothing_gets_one_line(command, shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(checkpoint, "load_tokenizer", lambda name: Mute())
    model = str(shop.expected / PHASES[2].file)
    (tmp_path / "text.txt").write_text("Tom saw a dog.")
    if command == "evaluate":
        monkeypatch.setattr(evaluate, "read_whole_text", lambda *_: whole_text_of_nothing())
        code = evaluate.main(["--checkpoint", model, "--data", str(tmp_path / "text.txt")])
    else:
        code = generate.main(["--compare", model, model] if command == "compare" else ["--checkpoint", model])
    error = capsys.readouterr().err
    assert code == 2 and error.startswith("error: ") and error.count("\n") == 1 and "token" in error


def whole_text_of_nothing():
    return WholeText("text.txt", np.array([load_tokenizer("builtin").eot_token], dtype=np.uint16), 1, True)


def test_figures_are_there_although_the_experts_words_break(shop, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(TokensOfExperts, "experts", broken)
    (tmp_path / "text.txt").write_text("Tom saw a dog. It was a big dog.")
    model, figures = str(shop.expected / PHASES[2].file), tmp_path / "figures.json"
    flags = ["--checkpoint", model, "--data", str(tmp_path / "text.txt"), "--json", str(figures)]
    assert evaluate.main(flags) == 0
    assert "the experts' words are left out: it broke" in capsys.readouterr().err
    found = json.loads(figures.read_text())
    assert found["loss"] > 0 and "experts" not in found
