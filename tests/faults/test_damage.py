"""Files that were truncated, flipped or forged: noticed, named, and never trained on."""

import json
import os
import shutil
import signal

import pytest
import torch

import durable_files
import train_tinystories
from config import UserError
from durable_files import write_tensors
from phases import HISTORY_NAME, STATE_NAME
from report.history import read_history
from run.run_state import read_run_state
from tests.faults import damage, kill_points
from tests.faults.damage import Malicious, bits_over, flipped, resumed_in_vain, runs_if_unpickled
from tests.faults.runs import parted, resume


@pytest.fixture(scope="module")
def after_phase_1(shop, tmp_path_factory):
    """A run that was killed after the boundary 1→2: it goes on with its state, its dense model and its history."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    killed = shop.run(folder, prepare=lambda: kill_points.patch("at_a_phases_start:2"))
    assert killed.code == -signal.SIGKILL
    # What stands behind the state is cut off in any case, and harm to it is none.
    os.truncate(folder / HISTORY_NAME, read_run_state(folder).history_bytes)
    return folder


@pytest.fixture
def folder(after_phase_1, tmp_path):
    return shutil.copytree(after_phase_1, tmp_path / "run")


def test_truncated_and_flipped_files_are_named_and_refused(after_phase_1, tmp_path):
    n_cases, wrong = damage.campaign(after_phase_1, tmp_path / "copy", flips=40)
    assert n_cases == 3 * (16 + 40) and wrong == []


def test_the_whole_files_are_not_refused(shop, folder):
    assert resume(folder).code == 0 and parted(shop.expected, folder) == []


def test_without_checksums_a_flipped_bit_would_be_trained_on(folder, monkeypatch):
    """The files are such that torch alone notices nothing: it is the checksum that does."""
    monkeypatch.setattr(durable_files, "_verified_checksum", lambda path: "0" * 64)
    path = folder / STATE_NAME
    content = torch.load(path, weights_only=True)
    changed = 0
    for bit in bits_over(path, 40)[5:-5]:
        with damage.CopiedFolder(folder, folder.parent / f"copy{bit}").damaged(STATE_NAME) as copy:
            flipped(copy, bit)
            try:
                other, _ = durable_files.read_tensors(copy)
            except durable_files.DamagedFile:
                continue
            changed += any(
                not torch.equal(other["moments"][name][key], value)
                for name, moments in content["moments"].items()
                for key, value in moments.items()
            )
    assert changed > 3


def test_a_bit_flipped_in_the_token_cache_is_found_and_the_stories_are_tokenised_again(shop, folder, tmp_path):
    source = json.loads((folder / HISTORY_NAME).read_text().splitlines()[0])["config"]
    cache = shutil.copytree(source["cache_dir"], tmp_path / "cache")
    (train,) = cache.glob("*/train.bin")
    for path in (train, train.with_name("valid.bin"), train.with_name("meta.json")):
        flipped(path, 8 * path.stat().st_size // 2)
        copy = shutil.copytree(folder, tmp_path / path.stem)
        outcome = resume(copy, "--cache-dir", cache)
        assert outcome.code == 0, outcome.err
        assert f"Token cache {train.parent} cannot be used" in outcome.out and "tokenising again" in outcome.out
        assert parted(shop.expected, copy) == []


@pytest.mark.parametrize("name", [STATE_NAME, "dense_model.pt"])
def test_a_malicious_pickle_does_not_run(name, folder, tmp_path):
    assert runs_if_unpickled(tmp_path / "proof")
    (tmp_path / "proof").unlink()
    content = torch.load(folder / name, weights_only=True)
    for forged in (Malicious(tmp_path / "proof"), {**content, "config": Malicious(tmp_path / "proof")}):
        write_tensors(forged, folder / name)
        # The seal of a forged file is right: it keeps out accidents, and weights_only keeps out code.
        assert "not the model" in (problem := resumed_in_vain(folder, folder / name)) or problem == ""
        assert not (tmp_path / "proof").exists()


def test_a_model_of_another_run_is_not_taken_for_this_ones(shop, folder, tmp_path):
    assert shop.run(tmp_path / "other", "--seed", "1").code == 0
    shutil.copy(tmp_path / "other" / "dense_model.pt", folder)
    assert resumed_in_vain(folder, folder / "dense_model.pt") == ""


def test_a_history_of_another_run_is_not_taken_for_this_ones(shop, folder):
    shutil.copy(shop.expected / HISTORY_NAME, folder)
    assert resumed_in_vain(folder, folder / HISTORY_NAME) == ""


def test_a_torn_last_line_and_rows_after_the_state_are_cut(shop, folder):
    with open(folder / HISTORY_NAME, "a") as file:
        file.write('{"event": "step", "lo')
    assert resume(folder).code == 0 and parted(shop.expected, folder) == []


@pytest.mark.parametrize("change", ["lose", "double", "swap"])
def test_lines_lost_doubled_or_swapped_are_found(change, shop, tmp_path):
    lines = (shop.expected / HISTORY_NAME).read_bytes().splitlines(keepends=True)
    {
        "lose": lambda: lines.pop(5),
        "double": lambda: lines.insert(5, lines[5]),
        "swap": lambda: lines.insert(5, lines.pop(6)),
    }[change]()
    path = tmp_path / HISTORY_NAME
    path.write_bytes(b"".join(lines))
    with pytest.raises(UserError, match="line [67]: its checksum is wrong"):
        read_history(path)


def test_an_overwritten_run_is_gone_only_when_the_new_one_begins(shop, folder, capsys):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for flags in (["--data", "no/such/file"], ["--d-model", "15"], ["--context-length", "99999"]):
        assert train_tinystories.main([str(a) for a in shop.arguments(folder, "--overwrite", *flags)]) == 2
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    capsys.readouterr()
