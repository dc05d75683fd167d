"""The history of a run: `training_history.jsonl`, one JSON object a line, append-only.

Every row has `event`, `time` (seconds since 1970) and, last, `crc`: the CRC-32 of the row's text before it,
chained through the rows above. A changed, missing or doubled line is found at once. By event:

run           versions, git commit, device, threads, precision, config, data, parameters of each phase, outlook (whether
              growth was expected to pay, and why; missing where the settings as given make nothing larger, and with a
              start_phase)
resumed       phase, step, changes: what a resumed run does otherwise than its `run` row says, and parameters as there;
              no row without changes, since such a run is the one that was never stopped
step          phase, step (in the phase), loss (training batch, nats a token), lr, grad_norm,
              tokens (this run has seen), flops (counted, of this run), seconds (since the
              phase began); every `log_every` steps also memory_bytes (training.device.used_bytes), and of an MoE
              balance_loss, z_loss and expert_shares (one list per layer); `skipped` (true) where the step was not taken
eval          phase, step, tokens, loss (held-out, nats a token), bits_per_byte
boundary      from_phase, to_phase, loss_before, loss_after, jump (same held-out batches, fp32),
              near_ties_left_out (of loss_after, where they alone made the jump too large),
              bits_per_byte, same_story (null where sample_tokens is 0, where two stories part at a near-tie, and
              where they could not be told), tokens
verification  to_phase, check, passed, reason, and the check's figures
liveness      phase (after the boundary), steps (of that phase so far), and the fields of
              transfer.liveness.LivenessReport
sample        phase, prompt, story, token_ids (of the continuation)
summary       flops (counted, of the whole run), skipped_steps, phase1_final, phase2_first, phase2_final … (held-out
              losses), jump12 …, total_drop (in the last phase), seconds (of the whole run)

A figure that is not finite is null.
"""

from __future__ import annotations

import json
import math
import re
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from config import UserError
from durable_files import sync
from phases import HISTORY_NAME

SEAL = re.compile(rb', "crc": "([0-9a-f]{8})"}\n$')
# Fields that tell when something happened, or on what a machine, and not what: two equal runs differ in them alone.
WALL_CLOCK = ("time", "seconds", "memory_bytes")
# Of a `run` row: what is told by the fingerprint already, or follows from config and data.
NOT_COMPARED = ("event", "config", "data", "parameters", "outlook", *WALL_CLOCK)
# How a run is started, where it keeps and shows things, when it saves: no figure depends on these, and they are not
# compared.
NEUTRAL = (
    *("resume", "overwrite", "checkpoint_dir", "cache_dir", "save_every", "ignore_memory_plan"),
    *("tensorboard", "wandb"),
)


class HistoryFailed(UserError):
    """A row could not be written: the run stops, as what it does next could not be told."""


class Mirror(Protocol):
    """Shows elsewhere what is written to a history."""

    def tell(self, row: dict) -> None: ...

    def close(self) -> None: ...


class History:
    """Appends rows to a JSONL file; each row is on disk's way before `write` returns.

    `n_bytes` and `crc` say how far it has come.

    Args:
        n_bytes, crc: how far the file had come when a state was saved, see `require_history`. What follows
            is cut off; 0 begins anew.
        mirror: is told each row that has been written, and closed with the history; see run/live.py.
    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path, n_bytes: int = 0, crc: int = 0, mirror: Mirror | None = None):
        self.path, self.n_bytes, self.crc, self.mirror = path, n_bytes, crc, mirror
        try:
            # Unbuffered: after an error nothing is left that a later flush would write.
            self._file = open(path, "ab", buffering=0)
            self._file.truncate(n_bytes)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --checkpoint-dir") from error

    def write(self, event: str, **values) -> None:
        row = {"event": event, "time": round(time.time(), 3), **finite(values)}
        text = json.dumps(row, allow_nan=False).encode()
        crc = zlib.crc32(text, self.crc)
        line = text[:-1] + b', "crc": "%08x"}\n' % crc
        try:
            unwritten = memoryview(line)
            while unwritten:
                unwritten = unwritten[self._file.write(unwritten) :]
        except OSError as error:
            raise HistoryFailed(
                f"cannot write {self.path}: {error.strerror}; free some space, then go on with --resume"
            ) from error
        self.n_bytes, self.crc = self.n_bytes + len(line), crc
        if self.mirror:
            self.mirror.tell(row)

    def sync(self) -> None:
        """Returns when every row is on the disk."""
        sync(self._file)

    def close(self) -> None:
        self._file.close()
        if self.mirror:
            self.mirror.close()


def finite(value):
    """With null for what is not finite, however deep it lies: JSON has no NaN, and a failed check may have measured one."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, (list, tuple)) else value


class NoHistory:
    """What a process writes into that is not the one to write."""

    n_bytes = crc = 0

    def write(self, event: str, **values) -> None:
        pass

    def sync(self) -> None:
        pass

    def close(self) -> None:
        pass


def read_history(path: Path) -> list[dict]:
    """All rows of a history file, in order, without their `crc`; a torn last line is left out.

    Raises:
        UserError: a row is not what was written there.
    """
    return verified_rows(path)[0]


def require_history(path: Path, n_bytes: int, crc: int) -> None:
    """Raises UserError unless the file's first `n_bytes` are what they were when a state was saved."""
    if n_bytes and verified_rows(path, n_bytes)[1] != crc:
        raise UserError(
            f"{path} is not the history that belongs to the saved state; put the right one back, "
            f"or start again with --overwrite"
        )


def verified_rows(path: Path, n_bytes: int | None = None) -> tuple[list[dict], int]:
    """The rows in the first `n_bytes` of a history file, and the CRC-32 of the last; else as `read_history`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    if n_bytes is not None and len(content) < n_bytes:
        raise UserError(f"{path} has {len(content):,} bytes, but {n_bytes:,} had been written; put the whole file back")
    rows, crc = [], 0
    for number, line in enumerate(content[:n_bytes].splitlines(keepends=True), 1):
        is_torn = not line.endswith(b"\n")
        if is_torn and not SEAL.search(line[:-1] + b"\n"):  # otherwise it is whole, and its end was changed
            break
        seal = SEAL.search(line)
        text = line[: seal.start()] + b"}" if seal else line
        crc = zlib.crc32(text, crc)
        if not seal or int(seal[1], 16) != crc:
            raise UserError(
                f"{path}, line {number}: its checksum is wrong, so this line or one above was changed, lost or doubled; "
                f"put the right file back, or start again with --overwrite"
            )
        rows.append(json.loads(text))
    return rows, crc


def history_of(folder: Path) -> list[dict]:
    """Raises UserError where the folder has none that begins as one."""
    path = folder / HISTORY_NAME
    if not path.is_file():
        raise UserError(f"{folder} holds no run: there is no {HISTORY_NAME}")
    rows = read_history(path)
    if not rows or rows[0]["event"] != "run":
        raise UserError(f"{path} does not begin with the row of a run: it was stopped before it began")
    return rows


def given_differences(a: dict, b: dict) -> Iterator[tuple[str, str, object, object]]:
    """(kind, name, first, second) of all that two `run` rows say otherwise; the kind is "setting" or "given"."""
    for kind, given in (
        ("setting", [{k: v for k, v in row["config"].items() if k not in NEUTRAL} for row in (a, b)]),
        ("given", [{k: v for k, v in row.items() if k not in NOT_COMPARED} for row in (a, b)]),
    ):
        for name in dict.fromkeys([*given[0], *given[1]]):
            first, second = (each.get(name) for each in given)
            if first != second:
                yield kind, name, first, second
