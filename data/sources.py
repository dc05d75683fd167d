"""Where stories come from: files, standard input, the built-in stories; TinyStories itself is in `hub.py`."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from config import UserError
from data.readers import StoryFile, story_file

STANDARD_INPUT = "-"
READ_BYTES = 1 << 22


@dataclass(frozen=True)
class StorySource:
    """Stories for training and validation, opened anew by each call; uncleaned, a text may hold several.

    `valid` is None where one training story in twenty is to be held out.
    `fingerprint` changes whenever the stories may have changed.
    """

    label: str
    description: str
    fingerprint: str
    train: Callable[[], Iterator[str]]
    valid: Callable[[], Iterator[str]] | None


def builtin_source() -> StorySource:
    """The stories that come with the project; they are told when they are opened."""
    from data.builtin_stories import builtin_checksum, builtin_split

    split = functools.cache(builtin_split)
    return StorySource(
        label="builtin",
        description="the built-in stories",
        fingerprint=builtin_checksum(),
        train=lambda: iter(split()[0]),
        valid=lambda: iter(split()[1]),
    )


def is_there(data: str) -> bool:
    """Whether `data` names a file, a pipe or standard input."""
    return data == STANDARD_INPUT or (data != "" and Path(data).expanduser().exists())


def file_source(data: str, valid_data: str) -> StorySource:
    """Stories of local files, pipes or, as "-", of standard input; `valid_data` may be empty.

    Raises:
        UserError: a path is missing, a folder, empty, unreadable, or holds what is no text of stories.
    """
    if valid_data == data == STANDARD_INPUT:
        raise UserError("data and valid_data are both standard input; give a file for one of them")
    train, fingerprint = _checked(data, "data")
    description = train.name
    valid = None
    if valid_data:
        valid, valid_fingerprint = _checked(valid_data, "valid_data")
        fingerprint += f" {valid_fingerprint}"
        description += f", validation {valid.name}"
    return StorySource(
        label=re.sub(r"[^A-Za-z0-9_-]+", "_", Path(train.name).stem)[:40],
        description=description,
        fingerprint=fingerprint,
        train=train.texts,
        valid=valid.texts if valid else None,
    )


def _checked(given: str, setting: str) -> tuple[StoryFile, str]:
    """The file, and the checksum of its content: another text never passes for it, whatever its name, size and date."""
    try:
        if given == STANDARD_INPUT:
            path, name, suffix = _spooled(given, setting, _standard_input(setting)), "standard input", ""
        else:
            path = Path(given).expanduser()
            kind = path.stat().st_mode
            name, suffix = str(path.absolute()), None  # None is the file's own
            if stat.S_ISDIR(kind):
                raise UserError(f"{setting} is {given!r}, which is a folder; give one .txt, .jsonl or .parquet file")
            if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
                with path.open("rb") as pipe:
                    path, suffix = _spooled(given, setting, pipe), path.suffix.lower()
            elif not stat.S_ISREG(kind):
                raise UserError(
                    f"{setting} is {given!r}, which is a device; give a file, a pipe, or - for standard input"
                )
            else:
                # A link may have a name that says more than that of the file, as in the hub's cache.
                name = str(path.resolve())
                path = path if path.suffix else path.resolve()
        checksum = _checksum(path)
        if path.stat().st_size == 0:
            raise UserError(f"{setting} is {given!r}, which is empty (0 bytes); give a file with stories")
        return story_file(path, name, suffix), checksum
    except FileNotFoundError:
        raise UserError(f"{setting} is {given!r}, but there is no such file") from None
    except OSError as error:
        raise UserError(f"{setting} is {given!r}, which cannot be read: {error.strerror or error}") from error


def _checksum(path: Path) -> str:
    checksum = hashlib.blake2b(digest_size=16)
    with path.open("rb") as stream:
        while block := stream.read(READ_BYTES):
            checksum.update(block)
    return checksum.hexdigest()


def _standard_input(setting: str) -> BinaryIO:
    if sys.stdin is None or sys.stdin.isatty():
        raise UserError(f"{setting} is '-', but nothing is piped into standard input; give a file")
    return sys.stdin.buffer


@functools.cache
def _spool_folder() -> tempfile.TemporaryDirectory:
    """Removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="stories-", ignore_cleanup_errors=True)


def _spooled(given: str, setting: str, stream: BinaryIO) -> Path:
    """A file with what comes out of a pipe, which can be read once: it is read for its checksum, then for its stories."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError(f"{setting} is {given!r}, which only one of several processes could read; give a file")
    path = Path(_spool_folder().name, f"{setting}-{len(os.listdir(_spool_folder().name))}")
    try:
        with path.open("wb") as file:
            shutil.copyfileobj(stream, file, READ_BYTES)
    except OSError as error:
        raise UserError(
            f"{setting} is {given!r}, which could not be copied to {path.parent}: {error.strerror or error}; give a file"
        ) from error
    return path
