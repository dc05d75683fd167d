"""Places in a run at which a kill would hurt most, each as a patch that kills its own process there.

A point is `NAME` or `NAME:N`, the Nth time that the run comes by. Nothing in the product knows of these.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import durable_files
import train_tinystories
from data import cleaning, token_cache
from phases import phase_of
from report.history import History
from run import boundary, loop, run, saver, snapshots, start


def die(*_, **__) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_when(module, name: str, nth: int, after: bool = False, when: Callable[..., bool] = lambda *_: True) -> None:
    """Makes the process kill itself at the `nth` call of `module.name` for which `when` holds, before or after it."""
    original, calls = getattr(module, name), 0

    def deadly(*arguments, **named):
        nonlocal calls
        calls += when(*arguments)
        is_time = when(*arguments) and calls == nth
        if is_time and not after:
            die()
        result = original(*arguments, **named)
        if is_time:
            die()
        return result

    setattr(module, name, deadly)


def in_a_write(name: str, nth: int) -> None:
    """Half-way through the file `name`, when it is written for the `nth` time."""
    files = []

    def begins_file(self, file):
        original_init(self, file)
        if name in file.name:
            files.append(file.name)

    def half(self, block):
        if len(files) == nth and name in self._file.name:
            self._file.write(bytes(block)[: len(block) // 2])
            self._file.flush()
            die()
        return original_write(self, block)

    original_init, original_write = durable_files._HashingFile.__init__, durable_files._HashingFile.write
    durable_files._HashingFile.__init__, durable_files._HashingFile.write = begins_file, half


def in_a_history_line(nth: int) -> None:
    """With half a row in the history."""
    original, calls = History.write, 0

    def half(self, event, **values):
        nonlocal calls
        calls += 1
        if calls == nth:
            self._file.write(b'{"event": "step", "time": 17')
            die()
        original(self, event, **values)

    History.write = half


def before_rename(name: str, nth: int) -> None:
    kill_when(Path, "replace", nth, when=lambda self, target: Path(target).name == name)


def after_rename(name: str, nth: int) -> None:
    kill_when(Path, "replace", nth, after=True, when=lambda self, target: Path(target).name == name)


# What each does, and how often the small run comes by, if it saves its state after every step.
POINTS: dict[str, tuple[Callable[[int], None], int]] = {
    "in_token_cache": (lambda n: kill_when(cleaning, "clean_story", 100 * n), 5),
    "before_cache_meta": (lambda n: kill_when(token_cache, "_meta_checksum", n), 1),
    "before_cache_rename": (lambda n: kill_when(Path, "rename", n), 1),
    "after_cache_rename": (lambda n: kill_when(Path, "rename", n, after=True), 1),
    "in_state": (lambda n: in_a_write("run_state", 17 * n), 6),
    "before_state_rename": (lambda n: before_rename("run_state.pt", 17 * n - 16), 6),
    "after_state_rename": (lambda n: after_rename("run_state.pt", 17 * n - 16), 6),
    "in_model": (lambda n: in_a_write(phase_of(n).file, 1), 3),
    "before_model_rename": (lambda n: before_rename(phase_of(n).file, 1), 3),
    "after_model_rename": (lambda n: after_rename(phase_of(n).file, 1), 3),
    "before_history": (lambda n: kill_when(start, "History", n), 1),
    "in_history_line": (in_a_history_line, 30),
    "between_history_and_model": (lambda n: kill_when(loop, "save_model", n), 3),
    "between_model_and_state": (lambda n: kill_when(loop, "save_after_phase", n), 3),
    "between_history_and_state": (lambda n: kill_when(snapshots, "state_of", 7 * n, after=True), 12),
    "before_upcycling": (lambda n: kill_when(train_tinystories, "upcycle_to_moe", n), 1),
    "after_upcycling": (lambda n: kill_when(train_tinystories, "upcycle_to_moe", n, after=True), 1),
    "before_growth": (lambda n: kill_when(train_tinystories, "scale_bilaterally", n), 1),
    "after_growth": (lambda n: kill_when(train_tinystories, "scale_bilaterally", n, after=True), 1),
    "before_checks": (lambda n: kill_when(boundary, "run_checks", n), 2),
    "after_checks": (lambda n: kill_when(boundary, "run_checks", n, after=True), 2),
    "in_boundary_record": (lambda n: kill_when(boundary, "record_liveness", n), 2),
    "before_optimizer_growth": (lambda n: kill_when(train_tinystories, "grow_optimizer_state", n), 2),
    "after_optimizer_growth": (lambda n: kill_when(train_tinystories, "grow_optimizer_state", n, after=True), 2),
    "at_a_phases_start": (lambda n: kill_when(loop, "prepare_training", n), 3),
    "before_summary": (lambda n: kill_when(train_tinystories, "boundary_summary", n), 1),
    "before_picture_rename": (lambda n: before_rename("training_curves.png", n), 1),
    "before_report_rename": (lambda n: before_rename("report.html", n), 1),
    "before_state_is_deleted": (lambda n: kill_when(run.Run, "forget_state", n), 1),
    "after_state_is_deleted": (lambda n: kill_when(run.Run, "forget_state", n, after=True), 1),
    "between_two_steps": (lambda n: kill_when(loop, "save_if_due", 9 * n, after=True), 11),
}


def all_points() -> list[str]:
    """Every point as often as the small run comes by: NAME:1, NAME:2 …"""
    return [f"{name}:{n}" for name, (_, times) in POINTS.items() for n in range(1, times + 1)]


def save_always() -> None:
    """Saves the state after every step, whatever it costs: then every run comes by the same points."""
    saver.LARGEST_SHARE = float("inf")


def patch(point: str) -> None:
    """Makes this process kill itself at `point`, and save its state after every step until then."""
    save_always()
    name, _, nth = point.partition(":")
    POINTS[name][0](int(nth or 1))
