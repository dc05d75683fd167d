"""A whole run on 2 and on 4 ranks is that of one rank, but for rounding; the 4 were stopped and resumed on the way."""

import pytest
import torch

from config import PRESETS
from models import load_model
from phases import PHASES
from tests.ranks.worlds import LOSSES, STEPS, differences, rows_of

TOLERANCE = 1e-5
# How far the steps of a run can move a matrix in each of its directions: orthogonalised steps are as long as their rate.
RATES = STEPS * (PRESETS["tiny"].lr_phase1 + PRESETS["tiny"].lr_phase2 + PRESETS["tiny"].lr_phase3)
# Of that, what rounding may turn. Orthogonalising carries it far where a singular value is small, so some single
# weights part by more; a matrix that moved otherwise parts by a tenth and more of it.
TURNED = 1e-3


@pytest.fixture(params=["two", pytest.param("four", marks=pytest.mark.slow)])
def several(request):
    return request.getfixturevalue(request.param)


def test_all_losses_are_those_of_one_rank(one, several):
    found = differences(one, several)
    assert found.keys() == set(LOSSES) and max(found.values()) <= TOLERANCE, found


def test_checks_stories_and_coverage_are_those_of_one_rank(one, several):
    for a, b in zip(rows_of(one), rows_of(several)):
        for name in ("passed", "story", "same_story", "n_pairs", "steps", "new_parameters", "never_touched_by_module"):
            assert a.get(name) == b.get(name), (name, a, b)
    assert sum(row["event"] == "verification" for row in rows_of(several)) == 5


def test_model_files_are_those_of_one_rank(one, several):
    assert {path.name for path in several.iterdir()} == {path.name for path in one.iterdir()}
    for name in (phase.file for phase in PHASES):
        alone, shared = (torch.load(folder / name, weights_only=True) for folder in (one, several))
        assert alone["format"] == shared["format"] and alone["config"] == shared["config"]
        assert list(alone["weights"]) == list(shared["weights"])
        for key, weight in alone["weights"].items():
            assert type(shared["weights"][key]) is type(weight)
            n_directions = weight.numel() / (max(weight.shape[-2:]) if weight.ndim > 1 else 1)
            parted = (shared["weights"][key] - weight).norm().item() / (RATES * n_directions**0.5)
            assert parted <= TURNED, (name, key, parted)
        load_model(several / name)
