"""What Windows and macOS do otherwise, pretended: no test here has run on either."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import command_line
import durable_files
import train_tinystories
from command_line import quoted
from config import TrainingConfig
from durable_files import replacing
from report.overview import go_on
from run.ending import resume_command
from tests.test_run import SMALL
from training import machine
from training.device import used_bytes

CPU = torch.device("cpu")
QUICK = "--steps-phase1 1 --steps-phase2 1 --steps-phase3 1 --sample-tokens 2".split()


@pytest.fixture
def windows(monkeypatch):
    """As much of it as a run could meet: functions that are not there, folders that cannot be opened."""
    monkeypatch.setattr(durable_files, "IS_WINDOWS", True)
    for name in ("sysconf", "geteuid", "getuid", "fork", "getpgid", "killpg", "fchmod"):
        monkeypatch.delattr(os, name, raising=False)
    for module in ("fcntl", "resource", "pwd", "grp", "termios"):
        monkeypatch.setitem(sys.modules, module, None)
    open_file = os.open

    def no_folders(path, flags, *rest, **named):
        if (
            not isinstance(path, int)
            and Path(path).is_dir()
            and not flags & getattr(os, "O_TMPFILE", 0) & ~os.O_DIRECTORY
        ):
            raise PermissionError(13, "Permission denied")
        return open_file(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", no_folders)


def test_a_run_needs_nothing_that_windows_has_not(windows, tmp_path, token_cache):
    assert not hasattr(os, "sysconf")
    flags = [*SMALL, *QUICK, "--checkpoint-dir", str(tmp_path / "run"), "--cache-dir", token_cache]
    assert train_tinystories.main([*flags, "--plan"]) == 0
    assert train_tinystories.main(flags) == 0


def test_memory_is_known_without_proc_and_sysconf(windows, monkeypatch):
    available, used = machine.available_bytes(CPU), used_bytes(CPU)
    assert 1e8 < available < 1e14 and 1e8 < used < 1e12
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=123))
    assert machine.available_bytes(CPU) == 123


@pytest.mark.parametrize("n_busy", [0, 1, 3, 9])
def test_a_file_that_another_program_has_open_is_replaced_when_it_lets_go(n_busy, tmp_path, monkeypatch):
    """As on Windows, where a scanner may hold it for a moment; for ever is an error, and the file is what it was."""
    replace, calls = Path.replace, []

    def busy(self, target):
        calls.append(target)
        if len(calls) <= n_busy:
            raise PermissionError(13, "The process cannot access the file")
        return replace(self, target)

    monkeypatch.setattr(durable_files, "IS_WINDOWS", True)
    monkeypatch.setattr(durable_files.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(Path, "replace", busy)
    path = tmp_path / "state.pt"
    path.write_bytes(b"old")
    if n_busy == 9:
        with pytest.raises(PermissionError), replacing(path) as file:
            file.write(b"new")
    else:
        with replacing(path) as file:
            file.write(b"new")
    assert path.read_bytes() == (b"old" if n_busy == 9 else b"new")
    assert [each.name for each in tmp_path.iterdir()] == ["state.pt"]


FOLDERS = ["my run", "it's mine", 'a "b" c', "$HOME", "a&b", "plain"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_line_that_says_how_to_go_on_can_be_copied(folder, monkeypatch):
    command = resume_command(TrainingConfig(checkpoint_dir=folder))
    assert shlex.split(command)[-2:] == ["--checkpoint-dir", folder]
    past = SimpleNamespace(folder=Path(folder), summary=None, can_resume=True)
    assert shlex.split(go_on(past))[-1] == folder
    monkeypatch.setattr(durable_files, "IS_WINDOWS", True)
    assert resume_command(TrainingConfig(checkpoint_dir=folder)).endswith(subprocess.list2cmdline([folder]))
    assert quoted("C:\\my run") == '"C:\\my run"' and quoted("C:\\runs") == "C:\\runs"


def test_a_mac_writes_through_to_its_drive(tmp_path, monkeypatch):
    """By F_FULLFSYNC; where a file system has none, by fsync."""
    told, synced = [], []

    def fcntl(descriptor, command):
        told.append(command)
        if len(told) > 2:
            raise OSError(45, "Operation not supported")

    monkeypatch.setattr(durable_files.sys, "platform", "darwin")
    monkeypatch.setitem(sys.modules, "fcntl", SimpleNamespace(fcntl=fcntl, F_FULLFSYNC=51))
    monkeypatch.setattr(durable_files.os, "fsync", synced.append)
    for _ in range(2):
        with replacing(tmp_path / "file") as file:
            file.write(b"x")
    assert told == [51] * 4, "the file, and the folder that names it"
    assert len(synced) == 2


def test_text_files_are_read_and_written_as_utf8_whatever_the_system_takes():
    """On Windows open() takes the country's own encoding where none is named."""
    root, wrong = Path(command_line.__file__).parent, []
    for path in root.rglob("*.py"):
        if path.relative_to(root).parts[0] in ("tests", "benchmarks", "docs", ".venv"):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            is_text = re.search(
                r"\.(read_text|write_text)\(|(?<!\.)\bopen\((?!.*[\"'][rwax+]*b)|\.open\(\"[wr]\"", line
            )
            if is_text and not any(word in line for word in ("encoding=", "os.open(", "def ")):
                wrong.append(f"{path.relative_to(root)}:{number}: {line.strip()}")
    assert wrong == []
