"""The run's record: `training_history.jsonl`, one JSON object a line.

Every row has `event` and `time` (seconds since 1970). By event:

run           versions, device, precision, config, data, parameters of the three phases
step          phase, step (in the phase), loss (training batch, nats a token), lr, grad_norm,
              tokens (seen in the whole run), seconds (since the phase began); every `log_every`
              steps of an MoE also balance_loss, z_loss and expert_shares (one list per layer)
eval          phase, step, tokens, loss (held-out, nats a token), bits_per_byte
boundary      from_phase, to_phase, loss_before, loss_after, jump (same held-out batches, fp32),
              bits_per_byte, same_story (null where sample_tokens is 0), tokens
verification  to_phase, check, passed, reason, and the check's figures
trial         phase, step, pays, flops, loss_before, loss_as_it_is, loss_grown: see training/grow_when.py
liveness      phase (after the boundary), steps (of that phase so far), and the fields of
              transfer.liveness.LivenessReport
sample        phase, prompt, story, token_ids (of the continuation)
summary       flops (counted, of the whole run), phase1_final, phase2_first, phase2_final, phase3_first, phase3_final (held-out losses),
              jump12, jump23, total_drop (in phase 3), seconds (of the whole run)

A figure that is not finite is null.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path

from config import UserError


class History:
    """Appends rows to a JSONL file; each row is on disk's way before `write` returns.

    Raises:
        UserError: the file cannot be written.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self._file = open(path, "w", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another --checkpoint-dir") from error

    def write(self, event: str, **values) -> None:
        # JSON has no NaN and no infinity; a failed check may have measured one.
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        row = {"event": event, "time": round(time.time(), 3), **finite}
        try:
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; free some space and train again") from error

    def close(self) -> None:
        self._file.close()


def read_history(path: Path) -> list[dict]:
    """All rows of a history file, in order; a torn last line is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            rows.append(json.loads(line))
    return rows
