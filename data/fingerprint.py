"""Are these the stories that the run has been reading? Told from the tokens themselves, wherever they lie."""

from __future__ import annotations

import zlib

import numpy as np

from config import UserError
from data import StoryData

BLOCK_TOKENS = 1 << 16


def fingerprint(data: StoryData) -> dict:
    """Tokenizer, numbers of tokens, and the chained CRC-32 of every 65,536 of them."""
    return {
        "tokenizer": data.tokenizer.name,
        "is_stream": data.shard is not None,
        "train": {"tokens": len(data.train), "checksums": block_checksums(data.train)},
        "valid": {"tokens": len(data.valid), "checksums": block_checksums(data.valid)},
    }


def block_checksums(tokens: np.ndarray) -> list[str]:
    """After each block, the CRC-32 of all tokens so far, 8 hex digits."""
    crc, checksums = 0, []
    for start in range(0, len(tokens), BLOCK_TOKENS):
        crc = zlib.crc32(tokens[start : start + BLOCK_TOKENS].tobytes(), crc)
        checksums.append(f"{crc:08x}")
    return checksums


def require_same_stories(saved: dict, now: dict) -> None:
    """Raises UserError unless a run that read `saved` reads the same batches of `now`.

    Of a stream a run reads as much as its steps need: with other steps, more or less of the same.
    """
    if saved["tokenizer"] != now["tokenizer"] or saved["is_stream"] != now["is_stream"]:
        raise UserError(
            f"the run read its stories with the tokenizer {saved['tokenizer']}, these come with {now['tokenizer']}; "
            f"give the --data and --tokenizer that it began with"
        )
    for split, name in (("train", "training"), ("valid", "validation")):
        before, after = saved[split], now[split]
        checksums = before["checksums"], after["checksums"]
        if saved["is_stream"] and before["tokens"] != after["tokens"]:
            common = min(before["tokens"], after["tokens"]) // BLOCK_TOKENS
            checksums = before["checksums"][:common], after["checksums"][:common]
        elif before["tokens"] != after["tokens"]:
            raise UserError(
                f"the {name} stories have {after['tokens']:,} tokens, the run read {before['tokens']:,}; "
                f"give the --data and --valid-data that it began with"
            )
        if checksums[0] != checksums[1]:
            raise UserError(
                f"the {name} stories are not those that the run read: their tokens differ; "
                f"give the --data and --valid-data that it began with"
            )
