"""Disks that are full or read-only, and memory that runs out: one line, nothing lost, and a way on."""

import ctypes
import os
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from run import loop
from run.run_state import read_run_state
from tests.faults import kill_points
from tests.faults.runs import parted, resume


def largest_file(n_bytes: int):
    """A disk on which no file can grow beyond `n_bytes`, as far as this process is concerned."""

    def limit():
        # What it prints goes to a pipe that holds it: the limit is meant for the run's own files.
        sys.stdout = open(os.pipe()[1], "w", buffering=1, encoding="utf-8")
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, resource.RLIM_INFINITY))

    return limit


def one_error(outcome, code=2) -> str:
    assert outcome.code == code, (outcome.code, outcome.err)
    assert outcome.err.startswith("error: ") and outcome.err.count("\n") == 1, outcome.err
    return outcome.err


@pytest.mark.parametrize(
    "n_bytes, name",
    [
        (1_000, "run_state.pt"),  # the first one
        (4_000, "training_history.jsonl"),
        (200_000, "dense_model.pt"),
        (400_000, "run_state.pt"),  # the one after phase 1
        (700_000, "large_moe_final.pt"),
    ],
)
def test_a_full_disk_stops_the_run_and_loses_nothing(n_bytes, name, shop, tmp_path):
    # Saved at each phase's end alone, so that it is known which file is too large first.
    outcome = shop.run(tmp_path / "run", "--save-every", "60", "--log-every", "1", prepare=largest_file(n_bytes))
    error = one_error(outcome)
    assert f"{tmp_path / 'run' / name}" in error and "free some space" in error
    assert not list((tmp_path / "run").glob(".*.tmp"))
    if n_bytes == 1_000:
        assert "choose another --checkpoint-dir" in error
        return
    assert resume(tmp_path / "run", "--log-every", "7").code == 0
    undone = [
        text for text in parted(shop.expected, tmp_path / "run") if not text.startswith(("history", "setting log"))
    ]
    assert undone == []


def test_a_disk_that_is_full_of_what_the_run_prints_gets_a_line_as_well(shop, tmp_path):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, resource.RLIM_INFINITY))

    error = one_error(shop.run(tmp_path / "run", prepare=limit))
    assert "File too large" in error and "--resume" in error
    assert resume(tmp_path / "run").code == 0 and parted(shop.expected, tmp_path / "run") == []


def test_a_save_for_which_there_is_no_room_leaves_the_one_before(shop, tmp_path):
    def grows_full():
        kill_points.save_always()
        largest_file(500_000)()

    error = one_error(shop.run(tmp_path / "run", prepare=grows_full))
    assert "run_state.pt" in error and "the state saved before is whole" in error
    assert read_run_state(tmp_path / "run").phase == 1
    assert resume(tmp_path / "run").code == 0 and parted(shop.expected, tmp_path / "run") == []


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk takes root on Linux")
def test_a_small_disk_that_is_full(shop, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "none", disk], capture_output=True).returncode:
        pytest.skip("this machine does not let us mount a small disk")
    try:
        error = one_error(shop.run(disk / "run"))
        assert "No space left on device" in error and "free some space" in error
        shutil.copytree(disk / "run", tmp_path / "larger")
    finally:
        subprocess.run(["umount", disk], check=True)
    assert resume(tmp_path / "larger").code == 0 and parted(shop.expected, tmp_path / "larger") == []


def without_roots_privilege():
    """As root no folder is read-only; this process gives that up."""
    if os.geteuid() == 0:
        header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
        none = (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="capabilities are Linux's")
def test_a_read_only_folder_is_refused(shop, tmp_path):
    for name in ("run", "cache"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o555)
    error = one_error(shop.run(tmp_path / "run", prepare=without_roots_privilege))
    assert f"--checkpoint-dir {tmp_path / 'run'} is not writable" in error
    error = one_error(shop.run(tmp_path / "new", "--cache-dir", tmp_path / "cache", prepare=without_roots_privilege))
    assert "--cache-dir" in error
    assert not list((tmp_path / "run").iterdir())


def address_space(more: int):
    """So many bytes more than the process has now."""

    def limit():
        now = int(re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024
        resource.setrlimit(resource.RLIMIT_AS, (now + more, resource.RLIM_INFINITY))

    return limit


LARGE = ("--scale-factor", "40", "--extra-layers", "4")


@pytest.mark.skipif(sys.platform != "linux", reason="the limit and /proc are Linux's")
def test_memory_that_runs_out_in_phase_3_names_the_ways_out_and_what_is_safe(shop, tmp_path):
    outcome = shop.run(tmp_path / "run", *LARGE, prepare=address_space(600_000_000))
    error = one_error(outcome, code=4)
    numbers = re.search(
        r"plans for ([\d.]+) GB at its peak; --memory lean needs [\d.]+ GB, --batch-size 2 needs ([\d.]+) GB, "
        r"--scale-factor 1.5 --extra-layers 2 needs ([\d.]+) GB",
        error,
    )
    assert numbers and float(numbers[1]) > 0.7 > float(numbers[3]), error
    assert f"--resume --checkpoint-dir {tmp_path / 'run'}" in error
    state = read_run_state(tmp_path / "run")
    assert (state.phase, state.is_complete) == (2, True)
    # The way out, taken: with it the run ends as one that never wanted more.
    small = ("--scale-factor", "2", "--extra-layers", "1")
    assert resume(tmp_path / "run", *small, prepare=address_space(600_000_000)).code == 0
    assert not [text for text in parted(shop.expected, tmp_path / "run") if text.startswith("model")]


def output_nobody_reads_after_phase_1():
    """The reader of what a run prints leaves once the first phase is saved."""
    reader, writer = os.pipe()
    sys.stdout = open(writer, "w", buffering=1, encoding="utf-8")
    save = loop.save_after_phase

    def save_then_leave(*arguments):
        save(*arguments)
        if reader_is_there:
            os.close(reader_is_there.pop())

    reader_is_there = [reader]
    loop.save_after_phase = save_then_leave


def test_a_run_whose_output_nobody_reads_ends_with_one_line_and_loses_nothing(shop, tmp_path):
    error = one_error(shop.run(tmp_path / "run", prepare=output_nobody_reads_after_phase_1), code=141)
    assert "nobody reads" in error and f"--resume --checkpoint-dir {tmp_path / 'run'}" in error
    assert resume(tmp_path / "run").code == 0
    assert parted(shop.expected, tmp_path / "run") == []
