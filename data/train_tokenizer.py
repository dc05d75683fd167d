"""Trains the built-in tokenizer on the built-in training stories: `python -m data.train_tokenizer`.

Writes data/builtin/builtin_4096.tiktoken, the file shipped with the project, byte for byte.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable

import regex

from data.builtin_stories import builtin_split
from data.tokenizer import BUILTIN_RANKS_PATH, GPT2_PATTERN, write_ranks

N_RANKS = 4096


def train_bpe(stories: Iterable[str], n_ranks: int) -> dict[bytes, int]:
    """Byte-level BPE: the 256 bytes are ranks 0 to 255, then the most frequent pairs in turn.

    Pairs are counted by what they join to, as tiktoken looks them up when it encodes.
    A tie goes to the token that comes first in byte order.

    Raises:
        ValueError: the stories hold too few different words for `n_ranks`.
    """
    word_counts = Counter(word for story in stories for word in regex.findall(GPT2_PATTERN, story))
    parts = [[bytes([byte]) for byte in word.encode()] for word in word_counts]
    weights = list(word_counts.values())

    pair_counts: Counter = Counter()
    words_with: dict[bytes, set[int]] = {}
    for index, word in enumerate(parts):
        for pair in _pairs(word):
            pair_counts[pair] += weights[index]
            words_with.setdefault(pair, set()).add(index)
    # Entries go stale when a count changes; each change pushes a fresh one.
    heap = [(-count, pair) for pair, count in pair_counts.items()]
    heapq.heapify(heap)

    ranks = {bytes([byte]): byte for byte in range(256)}
    while len(ranks) < n_ranks:
        if not heap:
            raise ValueError(f"the stories yield only {len(ranks)} ranks, {n_ranks} wanted")
        negative_count, token = heapq.heappop(heap)
        if pair_counts[token] != -negative_count or not negative_count:
            continue
        ranks[token] = len(ranks)
        changed = set()
        for index in words_with[token]:
            old, new = parts[index], _merged(parts[index], token)
            parts[index] = new
            for pair in _pairs(old):
                pair_counts[pair] -= weights[index]
                changed.add(pair)
            for pair in _pairs(new):
                pair_counts[pair] += weights[index]
                words_with.setdefault(pair, set()).add(index)
                changed.add(pair)
        for pair in changed:
            heapq.heappush(heap, (-pair_counts[pair], pair))
    return ranks


def _pairs(word: list[bytes]) -> list[bytes]:
    return [left + right for left, right in zip(word, word[1:])]


def _merged(word: list[bytes], token: bytes) -> list[bytes]:
    """`word` with each pair that joins to `token` joined, from the left."""
    merged: list[bytes] = []
    position = 0
    while position < len(word):
        pair = b"".join(word[position : position + 2])
        if pair == token and position + 1 < len(word):
            merged.append(token)
            position += 2
        else:
            merged.append(word[position])
            position += 1
    return merged


if __name__ == "__main__":
    train_stories, _ = builtin_split()
    write_ranks(train_bpe(train_stories, N_RANKS), BUILTIN_RANKS_PATH)
    print(f"{BUILTIN_RANKS_PATH}: {N_RANKS} ranks from {len(train_stories)} stories")
