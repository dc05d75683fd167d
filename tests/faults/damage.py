"""What can happen to a file that lies on a disk, and whether the next command notices."""

from __future__ import annotations

import contextlib
import io
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import train_tinystories
from phases import HISTORY_NAME, PHASES, STATE_NAME

CHECKPOINTS = (STATE_NAME, PHASES[0].file)
TRUNCATIONS = [f"{part}/16" for part in range(16)]


def truncated(path: Path, part: str) -> None:
    numerator, denominator = map(int, part.split("/"))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * numerator // denominator])


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def bits_over(path: Path, n: int) -> list[int]:
    """`n` bits spread over the file, its first and its last among them, at every place within a byte."""
    last = 8 * path.stat().st_size - 1
    return sorted({min(last, index * last // (n - 1) + index % 8) for index in range(n)})


def resumed_in_vain(folder: Path, damaged: Path) -> str:
    """What is wrong with how `--resume` refuses a folder with a damaged file; empty if nothing."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    out, err = io.StringIO(), io.StringIO()
    with redirected(out, err):
        code = train_tinystories.main(["--resume", "--checkpoint-dir", str(folder)])
    error = err.getvalue()
    if code != 2 or not error.startswith("error: ") or error.count("\n") != 1:
        return f"exit code {code}: {error}"
    if str(damaged) not in error:
        return f"does not name the file: {error}"
    if {path.name: path.read_bytes() for path in folder.iterdir()} != before:
        return "something in the folder has changed"
    return ""


@contextlib.contextmanager
def redirected(out: io.StringIO, err: io.StringIO) -> Iterator[None]:
    # main asks the streams to replace what they cannot show.
    for stream in (out, err):
        stream.reconfigure = lambda **_: None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield


class CopiedFolder:
    """A copy of a stopped run's folder that is made whole again after each damage."""

    def __init__(self, original: Path, copy: Path):
        self.folder = copy
        shutil.copytree(original, copy)

    @contextlib.contextmanager
    def damaged(self, name: str) -> Iterator[Path]:
        path = self.folder / name
        content = path.read_bytes()
        try:
            yield path
        finally:
            path.write_bytes(content)


def campaign(original: Path, copy: Path, flips: int) -> tuple[int, list[str]]:
    """Truncates and flips what a resume reads; returns how often, and what went unnoticed.

    `original` is a run that was stopped after phase 1: its state, its model and its history are read.
    """
    folder, wrong, n_cases = CopiedFolder(original, copy), [], 0
    for name in (*CHECKPOINTS, HISTORY_NAME):
        path = folder.folder / name
        cases = [(truncated, part) for part in TRUNCATIONS] + [(flipped, bit) for bit in bits_over(path, flips)]
        for harm, where in cases:
            n_cases += 1
            with folder.damaged(name):
                harm(path, where)
                if problem := resumed_in_vain(folder.folder, path):
                    wrong.append(f"{name}, {harm.__name__} at {where}: {problem}")
    return n_cases, wrong


class Malicious:
    """A pickle that, if it is run, writes a file."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return (open, (str(self.proof), "w"))


def runs_if_unpickled(proof: Path) -> bool:
    """Whether the malice works at all."""
    pickle.loads(pickle.dumps(Malicious(proof))).close()
    return proof.exists()
