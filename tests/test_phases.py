"""The phases are one table: another order of them, or fewer, is another table and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

from models import load_model
from phases import PHASES, phase_of
from report.history import read_history
from tests.test_run import SMALL

ROOT = Path(__file__).parents[1]
QUICK = [*SMALL, *"--steps-phase1 2 --steps-phase2 2 --steps-phase3 2".split()]
# Phase 2 grows the dense model, phase 3 upcycles that; and a run that ends with the mixture of experts.
OTHERS = {
    "growth first": "(a, dataclasses.replace(c, number=2), dataclasses.replace(b, number=3))",
    "two phases": "(a, b)",
}


@pytest.fixture(params=OTHERS)
def other(request, tmp_path, token_cache):
    """A run of other phases: what they are called, its folder, what it printed."""
    code = (
        "import dataclasses, sys, phases\n"
        f"a, b, c = phases.PHASES\nphases.PHASES = {OTHERS[request.param]}\n"
        "import train_tinystories\nsys.exit(train_tinystories.main(sys.argv[1:]))"
    )
    flags = [*QUICK, "--checkpoint-dir", tmp_path / "run", "--cache-dir", token_cache]
    result = subprocess.run([sys.executable, "-c", code, *map(str, flags)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return request.param, tmp_path / "run", result.stdout


def test_another_table_is_another_run(other):
    name, folder, out = other
    boundaries = [row for row in read_history(folder / "training_history.jsonl") if row["event"] == "boundary"]
    assert all(abs(row["jump"]) <= 1e-5 for row in boundaries)
    report = (folder / "report.html").read_text(encoding="utf-8")
    if name == "growth first":
        models = {path.name: load_model(path).config for path in folder.glob("*.pt")}
        assert [m.d_model for m in models.values()].count(64) == 2
        assert [m.is_moe for m in models.values()].count(True) == 1 and models["moe_model_final.pt"].d_model == 64
        assert len(boundaries) == 2 and "PHASE 2  —  Large MoE" in out and "PHASE 3  —  Mixture of Experts" in out
        assert "--phase3: #b84e00" in report
    else:
        assert {path.name for path in folder.glob("*.pt")} == {"dense_model.pt", "moe_model_final.pt"}
        assert len(boundaries) == 1 and "Phase 2 total drop" in out and "PHASE 3" not in out
        assert "--phase3" not in report


def test_neighbours_files_and_colours():
    assert [phase_of(phase.number) for phase in PHASES] == list(PHASES)
    assert [phase.before for phase in PHASES] == [None, *PHASES[:-1]]
    assert [phase.after for phase in PHASES] == [*PHASES[1:], None]
    assert [phase.has_experts for phase in PHASES] == [False, True, True]
    assert len({phase.file for phase in PHASES}) == len({phase.colours for phase in PHASES}) == len(PHASES)
