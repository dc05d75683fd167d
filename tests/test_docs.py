"""What the documents tell people to type has to work, and what they link to has to exist."""

import dataclasses
import re
import shlex
from pathlib import Path

import pytest

from config import PRESETS
from docs import draw_phases
from phases import PHASES
from report.history import read_history
from run.cli import parse_config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.split("  #")[0].strip()
        for path in DOCUMENTS
        for line in re.findall(
            r"^\s*(?:\$ )?(python3? train_tinystories\.py.*)$", path.read_text(encoding="utf-8"), re.M
        )
    }
)


def test_the_main_command_is_documented():
    assert "python train_tinystories.py" in COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_documented_flags_and_values_are_accepted(command, monkeypatch):
    monkeypatch.setattr("run.cli.pick_device", lambda name: type("Device", (), {"type": "cpu"})())
    monkeypatch.setattr("run.cli.saved_config", lambda given: PRESETS["tiny"])  # no run is there to resume
    # Nor a model: as if it had twelve heads, of which a half and a third more are whole.
    start = {"d_model": 144, "n_heads": 12}
    monkeypatch.setattr(
        "run.cli.follow_start_model",
        lambda config, given, say: dataclasses.replace(config, **start) if config.start_phase > 1 else config,
    )
    words = shlex.split(command)[2:]
    if not {"--help", "--help-all"} & {*words}:
        parse_config(words, say=lambda line: None)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path):
    text = path.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text)
    targets += re.findall(
        r"`((?:tests|docs|models|transfer|training|data|benchmarks)/[\w./]+\.(?:py|md|png|tiktoken))`", text
    )
    missing = [target for target in targets if not (path.parent / target).exists() and not (ROOT / target).exists()]
    assert missing == []


def test_the_picture_of_the_phases_is_what_its_script_draws():
    assert draw_phases.PICTURE.read_text(encoding="utf-8") == draw_phases.picture()


def test_the_reference_chain_in_the_recipe_is_that_of_its_history():
    rows = read_history(ROOT / "benchmarks" / "results" / "reference_chain" / "training_history.jsonl")
    losses = {(row["phase"], row["step"]): row["loss"] for row in rows if row["event"] == "eval"}
    jumps = {row["to_phase"]: f"{row['jump']:.1e}".replace("e-0", "e-") for row in rows if row["event"] == "boundary"}
    assert len(losses) == 6 and len(jumps) == 2
    told = (ROOT / "docs" / "RECIPE.md").read_text(encoding="utf-8")
    for phase in PHASES:
        begins = f"{losses[phase.number - 1, 99]:.3f}" if phase.before else ""
        ends = " | ".join(f"{losses[phase.number, step]:.3f}" for step in (49, 99))
        cells = f" | {begins} | {ends} | {jumps.get(phase.number, '')} | ".replace("  ", " ")
        assert sum(cells in line and line.startswith(f"| {phase.number}, ") for line in told.splitlines()) == 1, cells
    for row in rows:
        if row["event"] == "sample":
            assert f"> {row['story'].removeprefix(row['prompt']).replace(chr(10), ' ')}\n" in told
