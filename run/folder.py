"""The folder of a run: held by one process, writable, and whose files are in it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from config import TrainingConfig, UserError
from phases import HISTORY_NAME, PHASES, PICTURE_NAME, REPORT_NAME, STATE_NAME
from training.ranks import team

LOCK_NAME = ".run.lock"


@contextlib.contextmanager
def sole_run(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; the system lets go of it when the process ends, however it ends.

    The first of a team holds it for all.

    Raises:
        UserError: another process holds it.
    """
    lock = filelock.FileLock(folder / LOCK_NAME)

    def acquire() -> None:
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            raise UserError(
                f"another process is training in {folder}; wait for it, or give another --checkpoint-dir"
            ) from None

    team().first(acquire)
    try:
        yield
    finally:
        lock.release()


def require_writable(folder: Path) -> None:
    """Creates the checkpoint folder. Raises UserError where it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"--checkpoint-dir {folder} is not writable ({error.strerror}); choose another folder"
        ) from error


def find_earlier_run(folder: Path, config: TrainingConfig) -> list[Path]:
    """The files in the folder that this run would write anew.

    Raises:
        UserError: there are some and `overwrite` is not set.
    """
    models = (phase.file for phase in PHASES[config.start_phase - 1 :])
    names = (STATE_NAME, HISTORY_NAME, *models, PICTURE_NAME, REPORT_NAME)
    taken = [folder / name for name in names if (folder / name).exists()]
    if taken and not config.overwrite:
        raise UserError(
            f"{folder} holds a run already ({', '.join(path.name for path in taken)}); --resume goes on with it, "
            f"another --checkpoint-dir leaves it alone, --overwrite replaces it"
        )
    return taken
