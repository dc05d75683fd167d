"""Files that appear under their name whole or not at all, and whose damage is found when they are read.

A file of tensors is what `torch.save` writes and, behind it, MARK and the SHA-256 of every byte before
MARK. `torch.load` reads such a file as it is; `read_tensors` reads it only if not one bit has changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

MARK = b"\nsha256\n"
TRAILER_BYTES = len(MARK) + hashlib.sha256().digest_size
READ_BYTES = 1 << 22
TEMPORARY = ".tmp"
IS_WINDOWS = os.name == "nt"


class DamagedFile(Exception):
    """A file cannot be used as it is; the text says why, without the file's name."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A temporary file in the same folder, which takes the name `path` when the block ends.

    By then it is on the disk (fsync). After an error, or a kill, `path` is what it was before.

    Raises:
        OSError: as writing does.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    try:
        with temporary.open("wb") as file:
            yield file
            sync(file)
        take_name(temporary, path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def take_name(temporary: Path, path: Path) -> None:
    """Renames over `path`.

    On Windows that fails while any program has the old file open, a scanner for viruses say: there it is tried for some
    seconds.
    """
    for seconds in (0.01, 0.1, 1.0, 3.0) if IS_WINDOWS else ():
        try:
            temporary.replace(path)
            return
        except PermissionError:
            time.sleep(seconds)
    temporary.replace(path)


def remove_leftovers(folder: Path, names: tuple[str, ...]) -> None:
    """Deletes the temporary files that killed processes left; call it where nobody else writes these names."""
    for name in names:
        for temporary in folder.glob(f".{name}.*{TEMPORARY}"):
            temporary.unlink(missing_ok=True)


def write_tensors(content: dict, path: Path) -> str:
    """Writes what `torch.save` can write, atomically and with its checksum; returns that, 64 hex digits.

    Raises:
        OSError, RuntimeError: the folder cannot be written, or the disk is full.
    """
    with replacing(path) as file:
        hashing = _HashingFile(file)
        try:
            torch.save(content, hashing)
        except RuntimeError as error:
            # torch says at which byte it noticed, and not what the disk said.
            raise hashing.error or error from error
        file.write(MARK + hashing.sha256.digest())
    return hashing.sha256.hexdigest()


def read_tensors(path: Path, map_location: str | torch.device = "cpu", mmap: bool = False) -> tuple[dict, str]:
    """What `write_tensors` wrote and its checksum, 64 hex digits. No code in the file is run.

    Args:
        mmap: leaves tensors in the file until they are used (on the CPU alone).

    Raises:
        DamagedFile: the checksum is missing or wrong, or the file cannot be read.
    """
    try:
        checksum = _verified_checksum(path)
        return torch.load(path, map_location=map_location, mmap=mmap, weights_only=True), checksum
    except OSError as error:
        raise DamagedFile(error.strerror or str(error)) from error
    except pickle.UnpicklingError as error:  # whose text is a page on how to run the file's code
        raise DamagedFile("it holds other things than tensors and plain data") from error
    except (RuntimeError, EOFError, LookupError, ValueError, struct.error) as error:
        raise DamagedFile(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def encoded(text: str) -> bytes:
    """UTF-8, with ? for what that cannot hold: a file's name may be any bytes, and Python hands it out as surrogates."""
    return text.encode("utf-8", "replace")


def reason(error: Exception) -> str:
    """What an error says, in one line; of an error of the system what it says without the file."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())[:200]


def _verified_checksum(path: Path) -> str:
    sha256, left = hashlib.sha256(), path.stat().st_size - TRAILER_BYTES
    with path.open("rb") as file:
        while left > 0 and (block := file.read(min(READ_BYTES, left))):
            sha256.update(block)
            left -= len(block)
        trailer = file.read()
    if not trailer.startswith(MARK):
        raise DamagedFile("it does not end with a checksum: incomplete, or not written by this version")
    if trailer != MARK + sha256.digest():
        raise DamagedFile("its checksum is wrong: some of its bytes have changed since it was written")
    return sha256.hexdigest()


class _HashingFile:
    """What `torch.save` asks of a file; it writes from the beginning to the end, and never seeks."""

    def __init__(self, file: BinaryIO):
        self._file, self.sha256, self.error = file, hashlib.sha256(), None

    def write(self, block) -> int:
        self.sha256.update(block)
        try:
            return self._file.write(block)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


def sync(file) -> None:
    """Returns when what was written to `file` is on the disk."""
    file.flush()
    sync_descriptor(file.fileno())


def sync_descriptor(descriptor: int) -> None:
    """On a Mac fsync leaves it to the drive when it writes; F_FULLFSYNC does not. Not every file system there has that."""
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
        except OSError:
            pass
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Returns when the names in `folder` are on the disk."""
    if IS_WINDOWS:  # which cannot open folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        sync_descriptor(descriptor)
    finally:
        os.close(descriptor)


def beside(path: Path, name: str) -> Path:
    """The file `name` beside `path` or, where `path` is a link, beside a file that it leads to; else where it would be."""
    step = path
    for _ in range(40):  # as many links as Linux follows
        found = step.with_name(name)
        if found.exists():
            return found
        if not step.is_symlink():
            break
        step = step.parent / os.readlink(step)
    return path.with_name(name)
