"""Folders and files whose names are no UTF-8, as a system may hand them out: everything that is written takes them."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import evaluate
import generate
from command_line import as_it_came
from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT
from hugging_face import export
from phases import HISTORY_NAME, REPORT_NAME, phase_of
from report.__main__ import main as report_main
from report.history import read_history
from tests.faults.runs import start
from tests.test_run import SMALL
from transfer import grow

LATIN1 = b"caf\xe9 au lait"
QUICK = "--steps-phase1 2 --steps-phase2 1 --steps-phase3 1 --sample-tokens 2".split()


def quietly(main, arguments: list[str]) -> int:
    """A command's exit code. What it prints holds such names, which pytest-xdist cannot send from process to process."""
    printed = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="surrogateescape")
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        return main(arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder of such a name; some systems have none."""
    folder = tmp_path_factory.mktemp("names")
    place = Path(os.fsdecode(os.fsencode(folder) + b"/" + LATIN1))
    try:
        place.mkdir()
    except OSError:
        pytest.skip("this file system takes no such name")
    return place


@pytest.fixture(scope="module")
def finished(place, token_cache, tokenizer_json) -> Path:
    """A run of which stories, tokenizer, cache and checkpoints have such names."""
    stories = place / "stories.txt"
    stories.write_text(END_OF_TEXT.join(builtin_split()[0][:300]), encoding="utf-8")
    tokenizer = place / os.fsdecode(b"t\xf6kens.json")
    tokenizer.write_bytes(tokenizer_json)
    files = ["--data", stories, "--tokenizer", tokenizer, "--cache-dir", place / "cache"]
    outcome = start([*SMALL, *QUICK, *files, "--checkpoint-dir", place / "run", "--save-every", "0"]).finish()
    assert outcome.code == 0, outcome.err
    assert "goes on without it" not in outcome.out, outcome.out
    return place / "run"


def test_a_run_in_a_folder_whose_name_is_no_utf8_ends_with_its_report(finished):
    page = (finished / REPORT_NAME).read_text(encoding="utf-8")
    assert "caf? au lait" in page
    assert read_history(finished / HISTORY_NAME)[0]["config"]["data"].endswith("stories.txt")
    assert quietly(report_main, [str(finished)]) == 0


def test_the_line_that_says_how_to_go_on_has_the_bytes_of_the_name(finished, place):
    config = read_history(finished / HISTORY_NAME)[0]["config"]
    files = ["--data", config["data"], "--tokenizer", config["tokenizer"], "--cache-dir", config["cache_dir"]]
    folder = place / "stopped run"
    command = [sys.executable, "train_tinystories.py", *SMALL, *files, "--checkpoint-dir", folder]
    child = subprocess.Popen(
        [*command, "--steps-phase1", "100000"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=Path(__file__).parent.parent
    )  # fmt: skip
    for line in child.stdout:
        if b"| loss" in line:
            break
    child.terminate()
    error = child.communicate()[1]
    assert child.returncode == 143
    said = re.search(rb"--checkpoint-dir '(.*)'\n$", error)
    assert said and said[1] == os.fsencode(folder), error


def test_figures_of_a_model_there_are_json_that_names_it(finished, place):
    model, figures = finished / phase_of(3).file, place / "figures.json"
    assert quietly(evaluate.main, ["--checkpoint", str(model), "--data", str(place / "stories.txt"), "--max-tokens", "400",
                          "--json", str(figures)]) == 0  # fmt: skip
    assert json.loads(figures.read_text(encoding="utf-8"))["checkpoint"] == str(model)
    assert quietly(generate.main, ["--checkpoint", str(model), "--max-tokens", "3"]) == 0


@pytest.mark.parametrize("number", [1, 3])
def test_such_a_model_is_exported_with_its_card(number, finished, place):
    out = place / os.fsdecode(f"export{number} \N{LATIN SMALL LETTER E WITH ACUTE}".encode("latin-1"))
    assert quietly(export.main, ["--checkpoint", str(finished / phase_of(number).file), "--out", str(out)]) == 0
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"# export{number} ?" in card and "held-out loss" in card


def test_growing_such_a_model_by_hand_works(finished, place):
    out = place / "grown.pt"
    assert (
        quietly(grow.main, ["--checkpoint", str(finished / phase_of(2).file), "--out", str(out), "--extra-layers", "1"])
        == 0
    )
    assert out.exists()


def test_a_lone_surrogate_that_is_no_name_ends_no_command():
    error = UnicodeEncodeError("utf-8", "a\ud800b", 1, 2, "surrogates not allowed")
    assert as_it_came(error) == ("?", 2)
    assert as_it_came(UnicodeEncodeError("utf-8", "a\udce9b", 1, 2, "surrogates not allowed")) == (b"\xe9", 2)


def test_a_notebooks_streams_which_cannot_be_set_will_do():
    out, err = io.StringIO(), io.StringIO()
    assert not hasattr(out, "reconfigure")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert generate.main(["--temperature", "-1"]) == 2
    assert err.getvalue().startswith("error: temperature is -1")
