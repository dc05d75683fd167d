"""A run that several ranks have saved goes on on any number of them; damage to what they saved is found."""

import json
import pickle
import shutil
import signal

import pytest
import torch

import durable_files
from phases import HISTORY_NAME, STATE_NAME
from report.history import read_history
from run import start, state_shards
from tests.ranks.worlds import differences, signal_after

pytestmark = pytest.mark.slow

TOLERANCE = 1e-5


def test_what_four_have_saved_one_goes_on_with(world, one, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")
    assert len(list(folder.glob("run_state*"))) == 2, "the state, and one folder of shards"
    assert world.resume(1, folder)[0].code == 0
    assert max(differences(one, folder).values()) <= TOLERANCE
    assert not list(folder.glob("run_state*"))
    assert [r["changes"]["ranks"] for r in read_history(folder / HISTORY_NAME) if r["event"] == "resumed"] == [[4, 1]]


def test_what_four_have_saved_two_go_on_with_and_what_those_save_one(world, one, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")
    # After phase 2 has been saved complete, and in phase 3.
    outcomes = world.resume(2, folder, prepare=lambda: signal_after(5, 0, signal.SIGTERM))
    assert [outcome.code for outcome in outcomes] == [143, 143] and "of phase 3" in outcomes[0].err
    assert world.resume(1, folder)[0].code == 0
    assert max(differences(one, folder).values()) <= TOLERANCE


def test_what_one_has_saved_two_go_on_with(world, one, tmp_path):
    outcome = world.run(1, tmp_path / "run", prepare=lambda: signal_after(10, 0, signal.SIGTERM))[0]
    assert outcome.code == 143
    assert [outcome.code for outcome in world.resume(2, tmp_path / "run")] == [0, 0]
    assert max(differences(one, tmp_path / "run").values()) <= TOLERANCE


def no_moments():
    def forgetful(state, folder, model, moments):
        whole(state, folder, model, moments)
        moments.clear()

    whole, start.read_shards = start.read_shards, forgetful


def test_a_resume_without_moments_is_found(world, one, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")
    outcome = world.resume(1, folder, prepare=no_moments)[0]
    assert outcome.code == 0 and max(differences(one, folder).values()) > 10 * TOLERANCE


def shards_in(folder):
    """The folder that the saved state names."""
    (shards,) = folder.glob("run_state.[ab]")
    return shards


@pytest.mark.parametrize("name", [".metadata", "__3_0.distcp"])
def test_a_flipped_bit_is_found(name, world, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")
    content = bytearray((shards_in(folder) / name).read_bytes())
    content[len(content) // 2] ^= 1
    (shards_in(folder) / name).write_bytes(content)
    outcome = world.resume(1, folder)[0]
    assert outcome.code == 2 and f"{shards_in(folder) / name} is damaged or missing" in outcome.err
    assert len(outcome.err.splitlines()) == 1


def test_on_several_ranks_one_says_what_is_damaged(world, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")
    (shards_in(folder) / "__1_0.distcp").unlink()
    first, second = world.resume(2, folder)
    assert first.code == second.code == 2 and "is damaged or missing" in first.err and second.err == ""


def test_no_code_is_run_from_a_description_of_tensors(world, stopped_four, tmp_path):
    folder = shutil.copytree(stopped_four, tmp_path / "run")

    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "was here"), "w")

    (shards_in(folder) / ".metadata").write_bytes(pickle.dumps(Evil()))
    content, _ = durable_files.read_tensors(folder / STATE_NAME)
    content["shards"]["sha256"] |= state_shards.checksums_of([shards_in(folder) / ".metadata"])
    durable_files.write_tensors(content, folder / STATE_NAME)
    outcome = world.resume(1, folder)[0]
    assert outcome.code == 2 and "holds other things than tensors" in outcome.err
    assert not (tmp_path / "was here").exists()


def test_one_rank_saves_as_ever(world, tmp_path):
    """The file of one rank has nothing in it of several."""
    world.run(1, tmp_path / "run", prepare=lambda: signal_after(2, 0, signal.SIGTERM))
    content = torch.load(tmp_path / "run" / STATE_NAME, weights_only=True)
    assert "shards" not in content and "ranks" not in content["facts"] and content["weights"]
    assert not list((tmp_path / "run").glob("run_state.[ab]"))
    rows = (tmp_path / "run" / HISTORY_NAME).read_text().splitlines()
    assert "ranks" not in json.loads(rows[0])
