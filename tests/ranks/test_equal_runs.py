"""A whole run on 2 and on 4 ranks is that of one rank, but for rounding; the 4 were stopped and resumed on the way."""

import pytest
import torch

from models import load_model
from tests.ranks.worlds import LOSSES, differences, rows_of
from training.run import MODEL_NAMES

TOLERANCE = 1e-5


@pytest.fixture(params=["two", "four"])
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
    for name in MODEL_NAMES.values():
        alone, shared = (torch.load(folder / name, weights_only=True) for folder in (one, several))
        assert alone["format"] == shared["format"] and alone["config"] == shared["config"]
        assert list(alone["weights"]) == list(shared["weights"])
        for key, weight in alone["weights"].items():
            assert type(shared["weights"][key]) is type(weight)
            torch.testing.assert_close(shared["weights"][key], weight, atol=1e-4, rtol=1e-3)
        load_model(several / name)
