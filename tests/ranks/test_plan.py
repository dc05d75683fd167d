"""What is said before several ranks begin. Nothing is started here."""

import dataclasses
import sys

import pytest
import torch

import train_tinystories
from config import PRESETS, UserError
from phases import LAUNCHERS_NAME
from run.cli import parse_config
from run.run_state import RunState, write_run_state
from training import machine as machine_module
from training import ranks, torchrun
from training.machine import GB, Machine
from training.memory import phase_memory
from training.plan import choose_memory
from training.torchrun import require_shareable

CPU, TINY = torch.device("cpu"), PRESETS["tiny"]


@pytest.mark.parametrize(
    ("changes", "device", "words"),
    [
        ({"batch_size": 6}, "cpu", ["batch_size is 6", "4 ranks × 1 parts", "--batch-size 8"]),
        ({"accumulate": 3, "batch_size": 8}, "cpu", ["4 ranks × 3 parts", "--batch-size 12"]),
        ({"memory": "lean"}, "cpu", ["--memory lean", "--memory full"]),
        ({}, "mps", ["4 ranks", "--device cpu"]),
    ],
)
def test_ranks_that_cannot_share_are_told_why(changes, device, words):
    with pytest.raises(UserError) as error:
        require_shareable(dataclasses.replace(TINY, **changes), torch.device(device), 4)
    assert all(word in str(error.value) for word in words), error.value
    require_shareable(TINY, CPU, 4)


def test_four_wrong_processes_say_it_once(monkeypatch, capfd):
    monkeypatch.setattr(torchrun, "SAYING_SECONDS", 0.0)
    for name in ("LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    for rank in range(4):
        monkeypatch.setenv("WORLD_SIZE", "4")
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setattr(sys, "stdout", sys.stdout)  # which all ranks but the first give up
        assert train_tinystories.main(["--batch-size", "6", "--device", "cpu", "--preset", "tiny"]) == 2
    assert capfd.readouterr().err.count("batch_size is 6") == 1


@pytest.mark.parametrize(
    "launchers, is_resumed",
    [(None, False), ("elsewhere 1 none", False), ("elsewhere 1 none\n{own}", True)],
    ids=["a run of one process", "another torchrun's run", "its own run"],
)
def test_torchrun_goes_on_with_its_own_run_alone(launchers, is_resumed, tmp_path, monkeypatch):
    write_run_state(RunState(dataclasses.asdict(TINY), {}, {}), tmp_path)
    if launchers:
        (tmp_path / LAUNCHERS_NAME).write_text(launchers.format(own=torchrun.launcher()))
    flags = ["--device", "cpu", "--preset", "tiny", "--overwrite", "--checkpoint-dir", str(tmp_path)]
    assert parse_config(flags)[0].overwrite
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config = parse_config(flags)[0]
    assert (config.resume, config.overwrite) == (is_resumed, not is_resumed)


def test_ranks_that_read_different_stories_are_named():
    ranks.OneProcess().require_alike("stories", "text")
    third_differs = object.__new__(ranks.Ranks)
    third_differs.gathered = lambda value: [value, value, "others"]
    with pytest.raises(UserError, match="rank 2: its stories"):
        third_differs.require_alike("stories", "its stories")


def test_a_shell_with_half_of_torchruns_settings_is_told_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UserError, match="MASTER_ADDR.* start with torchrun"), torchrun.together(TINY, CPU):
        pass


def test_ranks_divide_what_they_share_and_plan_for_what_is_whole():
    model = TINY.phase_geometries(4_097)[2]
    alone, shared = (phase_memory(model, 4096, Machine(CPU, None, n_ranks), False) for n_ranks in (1, 4))
    for name in ("weights", "optimizer", "gradients"):
        assert getattr(shared, name) == pytest.approx(getattr(alone, name) / 4)
    assert alone.gathered == 0 < shared.gathered < shared.peak and shared.activations < alone.activations
    reference = PRESETS["reference"]
    dense = reference.dense_geometry(50_257)
    for n_ranks in (1, 4):
        machine = Machine(CPU, torch.bfloat16, n_ranks, available=18 * GB)
        assert choose_memory(reference, dense, machine)[0].is_lean == (n_ranks == 1)


def test_ranks_of_one_machine_share_its_memory_and_not_a_gpus(monkeypatch):
    monkeypatch.setattr(machine_module, "available_bytes", lambda device: 24 * GB)
    monkeypatch.setattr(torchrun, "planned_count_here", lambda: 4)
    for device, each in ((CPU, 6 * GB), (torch.device("cuda"), 24 * GB)):
        assert Machine.now(device, None, n_ranks=4).available == each


def test_one_process_is_in_no_group(monkeypatch):
    with torchrun.together(TINY, CPU) as device:
        assert device is CPU and not torch.distributed.is_initialized()
    monkeypatch.setenv("WORLD_SIZE", "1")  # torchrun --nproc-per-node=1
    with torchrun.together(TINY, CPU):
        assert not torch.distributed.is_initialized() and ranks.team().is_alone
