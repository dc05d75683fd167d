"""A whole run on 2 and on 4 ranks is that of one rank, but for rounding."""

import json
import shutil

import pytest
import torch

from models import load_model
from tests.ranks.worlds import on_ranks, run  # noqa: F401
from training import ranks
from training.history import WALL_CLOCK, read_history
from training.run import HISTORY_NAME, MODEL_NAMES

TOLERANCE = 1e-5
LOSSES = ("loss", "loss_before", "loss_after", "balance_loss", "z_loss")


@pytest.fixture(scope="module")
def folders(tmp_path_factory, token_cache):
    """The same run on 1, 2 and 4 ranks."""
    folders = {n: tmp_path_factory.mktemp("runs") / str(n) for n in (1, 2, 4)}
    for n, folder in folders.items():
        outcomes = run(n, folder, "--cache-dir", token_cache)
        assert [outcome.code for outcome in outcomes] == [0] * n, outcomes[-1].err
        assert all(outcome.out == outcome.err == "" for outcome in outcomes[1:]), "rank 0 alone prints"
    return folders


def rows_of(folder) -> list[dict]:
    rows = read_history(folder / HISTORY_NAME)[1:]
    return [{key: value for key, value in row.items() if key not in WALL_CLOCK} for row in rows]


def differences(one, other) -> dict[str, float]:
    """The largest difference of each figure; both have the same rows."""
    worst = {}
    for a, b in zip(rows_of(one), rows_of(other), strict=True):
        assert a.keys() == b.keys() and a["event"] == b["event"]
        for name in LOSSES:
            if name in a:
                worst[name] = max(worst.get(name, 0.0), abs(a[name] - b[name]))
    return worst


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_all_losses_are_those_of_one_rank(n_ranks, folders):
    found = differences(folders[1], folders[n_ranks])
    assert found.keys() == set(LOSSES) and max(found.values()) <= TOLERANCE, found


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_checks_stories_and_coverage_are_those_of_one_rank(n_ranks, folders):
    for a, b in zip(rows_of(folders[1]), rows_of(folders[n_ranks])):
        for name in ("passed", "story", "same_story", "n_pairs", "coverage_steps", "new_parameters", "never_touched_share"):
            assert a.get(name) == b.get(name), (name, a)
    assert sum(row["event"] == "verification" for row in rows_of(folders[n_ranks])) == 5


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_model_files_are_those_of_one_rank(n_ranks, folders):
    assert {path.name for path in folders[n_ranks].iterdir()} == {path.name for path in folders[1].iterdir()}
    for name in MODEL_NAMES.values():
        one, other = (torch.load(folders[n] / name, weights_only=True) for n in (1, n_ranks))
        assert one["format"] == other["format"] and one["config"] == other["config"]
        assert list(one["weights"]) == list(other["weights"])
        for key, weight in one["weights"].items():
            assert type(other["weights"][key]) is type(weight)
            torch.testing.assert_close(other["weights"][key], weight, atol=1e-4, rtol=1e-3)
        load_model(folders[n_ranks] / name)


def counts_not_reduced():
    def own_alone(loss, routings):
        everyones, _ = over_all(loss, routings)
        return everyones, routings

    over_all, ranks.over_all = ranks.over_all, own_alone


def everyone_trains_on_the_first_rows():
    ranks.own_rows = lambda tokens, parts=1: tokens[: len(tokens) // ranks.count()]


@pytest.mark.parametrize("fault", [counts_not_reduced, everyone_trains_on_the_first_rows])
def test_a_fault_is_found(fault, folders, tmp_path, token_cache):
    short = ("--steps-phase1", "2", "--steps-phase3", "0", "--sample-tokens", "0", "--cache-dir", token_cache)
    for n, prepare in ((1, lambda: None), (2, lambda: None), (3, fault)):
        outcomes = run(min(n, 2), tmp_path / str(n), *short, prepare=prepare)
        assert outcomes[0].code == 0, outcomes[0].err
    assert max(differences(tmp_path / "1", tmp_path / "2").values()) <= TOLERANCE
    assert differences(tmp_path / "1", tmp_path / "3")["loss"] > 5 * TOLERANCE
