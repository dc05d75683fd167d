"""Stories tokenised once into memory-mapped files, verified whenever they are opened.

One folder per source, tokenizer and cleaning version:

    train.bin, valid.bin   token ids (`token_dtype`), each story followed by one end-of-text id
    meta.json              counts and checksums, its own and the vocabulary's included

A folder appears under its name complete or not at all.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import filelock
import numpy as np
import tiktoken
from tqdm import tqdm

from config import UserError
from data.cleaning import CLEANING_VERSION, END_OF_TEXT, clean_stories
from data.sources import StorySource
from data.tokenizer_file import TokenizerFile
from durable_files import sync, sync_folder

HELD_OUT_ONE_IN = 20
# Bounds the memory of a build; about a thousand stories of TinyStories.
CHUNK_CHARACTERS = 1 << 20
READ_BYTES = 1 << 22
META_KEYS = {"source", "tokenizer", "vocabulary", "train", "valid", "overlap", "checksum"}


def token_dtype(n_vocab: int) -> np.dtype:
    """Of ids below `n_vocab`, in files and in arrays, little-endian: uint16, or uint32 where that is too small.

    Batches are int64 (data/batches.py): torch computes little with unsigned integers.
    """
    return np.dtype("<u2" if n_vocab <= 1 << 16 else "<u4")


@dataclass
class SplitCounts:
    """What one .bin holds. `complete`: the source had no more stories. `dropped`: empty stories."""

    n_stories: int = 0
    n_tokens: int = 0
    repaired: int = 0
    dropped: int = 0
    complete: bool = False
    checksum: str = ""


@dataclass(frozen=True)
class TokenisedStories:
    """`train` and `valid`: np.memmap of `token_dtype`, shape (n_tokens,), read-only.

    `overlap`: distinct validation stories whose cleaned text is also in training.
    """

    folder: Path
    train: np.memmap
    valid: np.memmap
    train_counts: SplitCounts
    valid_counts: SplitCounts
    overlap: int


@dataclass(frozen=True)
class TokenNeed:
    """Tokens that a run reads: a longer source is read no further."""

    train: int
    valid: int


class CacheUnusable(Exception):
    """A cache folder exists but cannot serve; the text says why."""


def cache_folder(cache_dir: Path, source: StorySource, tokenizer_name: str) -> Path:
    """Where the tokens of `source` are kept; needs neither the source nor the tokenizer to be at hand."""
    key = json.dumps([source.fingerprint, source.valid is None, tokenizer_name, CLEANING_VERSION])
    digest = hashlib.blake2b(key.encode(), digest_size=6).hexdigest()
    return cache_dir / f"{source.label}-{tokenizer_name}-{digest}"


def load_tokens(folder: Path, encoding: tiktoken.Encoding, need: TokenNeed | None) -> TokenisedStories | None:
    """The verified tokens in `folder`; None where there is no such folder.

    Raises:
        CacheUnusable: sizes or checksums are wrong, the vocabulary is another one, or
            there are fewer tokens than `need` although the source has more.
    """
    try:
        if not folder.is_dir():
            return None
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if not isinstance(meta, dict) or not META_KEYS <= meta.keys():
            raise CacheUnusable("meta.json is incomplete")
        if meta.pop("checksum") != _meta_checksum(meta):
            raise CacheUnusable("the checksum of meta.json is wrong")
        if meta["vocabulary"] != _vocabulary_checksum(encoding):
            raise CacheUnusable("its tokens are of another vocabulary")
        counts = {split: SplitCounts(**meta[split]) for split in ("train", "valid")}
        dtype = token_dtype(encoding.n_vocab)
        tokens = {split: _verified(folder / f"{split}.bin", counts[split], dtype) for split in counts}
        overlap = int(meta["overlap"])
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise CacheUnusable(str(error)) from error
    for split, count in counts.items():
        wanted = getattr(need, split) if need else 0
        if count.n_tokens < wanted and not count.complete:
            raise CacheUnusable(f"{count.n_tokens:,} of {wanted:,} {split} tokens")
    return TokenisedStories(folder, tokens["train"], tokens["valid"], counts["train"], counts["valid"], overlap)


def load_or_build(
    cache_dir: Path,
    source: StorySource,
    tokenizer_name: str,
    encoding: tiktoken.Encoding,
    need: TokenNeed | None,
    say: Callable[[str], None],
) -> TokenisedStories:
    """The tokens of `source`, tokenised now unless a good cache exists.

    With a `need` the source is read only until it is met; without, to its end. Processes
    that build the same folder wait for each other.

    Raises:
        UserError: `cache_dir` cannot be written to, or the source gave no stories.
        Whatever the source raises while it is read.
    """
    folder = cache_folder(cache_dir, source, tokenizer_name)
    # Without the lock first: a good cache may be on a read-only disk.
    with contextlib.suppress(CacheUnusable):
        loaded = load_tokens(folder, encoding, need)
        if loaded is not None:
            return loaded
    with _blaming(cache_dir), _builder_lock(folder, say):
        try:
            loaded = load_tokens(folder, encoding, need)
        except CacheUnusable as reason:
            say(f"Token cache {folder} cannot be used ({reason}): tokenising again.")
        else:
            if loaded is not None:
                return loaded
        _build(folder, source, tokenizer_name, encoding, need)
        try:
            return load_tokens(folder, encoding, need)
        except CacheUnusable as reason:
            raise UserError(
                f"cache_dir {str(cache_dir)!r} does not keep what is written ({reason}); "
                f"give another folder with --cache-dir"
            ) from reason


@contextlib.contextmanager
def _blaming(cache_dir: Path) -> Iterator[None]:
    """Sources turn their own OSErrors into others, so the rest come from the cache."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"cache_dir {str(cache_dir)!r} cannot be written to: {error.strerror or error}; "
            f"give another folder with --cache-dir"
        ) from error


@contextlib.contextmanager
def _builder_lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        say(f"Another process is tokenising the same stories into {folder}: waiting for it.")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _build(
    folder: Path, source: StorySource, tokenizer_name: str, encoding: tiktoken.Encoding, need: TokenNeed | None
) -> None:
    building = folder.parent / f".{folder.name}.building"
    if building.exists():  # the lock is ours, so its builder is dead
        shutil.rmtree(building)
    building.mkdir()
    try:
        counts, overlap = _tokenise(building, source, encoding, need)
        meta = {
            "source": source.description,
            "tokenizer": tokenizer_name,
            "vocabulary": _vocabulary_checksum(encoding),
            "train": dataclasses.asdict(counts["train"]),
            "valid": dataclasses.asdict(counts["valid"]),
            "overlap": overlap,
        }
        meta["checksum"] = _meta_checksum(meta)
        with (building / "meta.json").open("w", encoding="utf-8") as file:
            json.dump(meta, file, indent=1)
            sync(file)
        if folder.exists():
            shutil.rmtree(folder)
        building.rename(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(building, ignore_errors=True)


class _SplitWriter:
    """One .bin while it is written, and its counts."""

    def __init__(self, path: Path, encoding: tiktoken.Encoding):
        self.counts = SplitCounts()
        self._end_of_text, self._dtype = encoding.eot_token, token_dtype(encoding.n_vocab)
        self._file = path.open("wb")
        self._crc = 0

    def add(self, ids: list[int]) -> None:
        block = np.array([*ids, self._end_of_text], dtype=self._dtype).tobytes()
        self._file.write(block)
        self._crc = zlib.crc32(block, self._crc)
        self.counts.n_stories += 1
        self.counts.n_tokens += len(ids) + 1

    def __enter__(self) -> _SplitWriter:
        return self

    def __exit__(self, *_) -> None:
        with self._file:
            sync(self._file)
        self.counts.checksum = f"{self._crc:08x}"


def _tokenise(
    building: Path, source: StorySource, encoding: tiktoken.Encoding, need: TokenNeed | None
) -> tuple[dict[str, SplitCounts], int]:
    """Writes both .bin files; returns their counts and the number of overlapping stories."""
    held_out = source.valid is None
    # Validation first: then only its hashes have to be kept while training is read.
    passes = [("train", source.train)] if held_out else [("valid", source.valid), ("train", source.train)]
    valid_hashes, overlap_hashes = set(), set()
    with (
        _SplitWriter(building / "train.bin", encoding) as train,
        _SplitWriter(building / "valid.bin", encoding) as valid,
        tqdm(desc="tokenising", unit=" stories", disable=None, leave=False) as progress,
    ):
        writers = {"train": train, "valid": valid}
        for pass_split, open_stories in passes:
            pass_counts = writers[pass_split].counts
            pass_counts.complete = True
            for story, repaired, ids in cleaned_and_encoded(open_stories(), encoding):
                progress.update()
                pass_counts.repaired += repaired
                if not story:
                    pass_counts.dropped += 1
                    continue
                story_hash = _hash(story)
                split = "valid" if held_out and story_hash % HELD_OUT_ONE_IN == 0 else pass_split
                if split == "valid":
                    valid_hashes.add(story_hash)
                elif story_hash in valid_hashes:
                    overlap_hashes.add(story_hash)
                writers[split].add(ids)
                if need and pass_counts.n_tokens >= getattr(need, pass_split):
                    pass_counts.complete = False
                    break
        if held_out:
            valid.counts.complete = train.counts.complete
    counts = {"train": train.counts, "valid": valid.counts}
    _refuse_empty(counts, source)
    return counts, len(overlap_hashes)


def cleaned_and_encoded(
    texts: Iterable[str], encoding: tiktoken.Encoding | TokenizerFile
) -> Iterator[tuple[str, bool, list[int]]]:
    """(cleaned story, whether it was repaired, its ids) of every story, encoded in threads chunk by chunk.

    Raises:
        UserError: the tokenizer does not keep a story.
    """
    chunk: list[tuple[str, bool]] = []
    n_characters = 0

    def encoded():
        ids_of_stories = encoding.encode_ordinary_batch([story for story, _ in chunk])
        if isinstance(encoding, TokenizerFile):
            for (story, _), ids in zip(chunk, ids_of_stories):
                encoding.require_same(story, ids)
        return [(story, repaired, ids) for (story, repaired), ids in zip(chunk, ids_of_stories)]

    for story, repaired in clean_stories(texts):
        chunk.append((story, repaired))
        n_characters += len(story)
        if n_characters >= CHUNK_CHARACTERS:
            yield from encoded()
            chunk, n_characters = [], 0
    yield from encoded()


def _refuse_empty(counts: dict[str, SplitCounts], source: StorySource) -> None:
    n_stories = counts["train"].n_stories + counts["valid"].n_stories
    if n_stories == 0:
        n_empty = counts["train"].dropped + counts["valid"].dropped
        raise UserError(f"{source.description} holds no stories: {n_empty:,} are there, all of them empty")
    if source.valid is None and 0 in (counts["train"].n_stories, counts["valid"].n_stories):
        raise UserError(
            f"{source.description} has too few stories ({n_stories:,}) to hold out one in {HELD_OUT_ONE_IN}; "
            f"put {END_OF_TEXT} between stories, or give held-out stories with --valid-data"
        )
    for split, name in (("train", "training"), ("valid", "validation")):
        if counts[split].n_stories == 0:
            raise UserError(f"the {name} file holds no stories: {source.description}")


def _hash(story: str) -> int:
    digest = hashlib.blake2b(story.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


@functools.lru_cache(maxsize=4)
def _vocabulary_checksum(encoding: tiktoken.Encoding) -> str:
    crc = 0
    for token in range(encoding.n_vocab):
        crc = zlib.crc32(encoding.decode_single_token_bytes(token) + b"\0", crc)
    return f"{crc:08x}"


def _meta_checksum(meta: dict) -> str:
    return f"{zlib.crc32(json.dumps(meta, sort_keys=True).encode()):08x}"


def _verified(path: Path, counts: SplitCounts, dtype: np.dtype) -> np.memmap:
    expected = counts.n_tokens * dtype.itemsize
    if path.stat().st_size != expected:
        raise CacheUnusable(f"{path.name} has {path.stat().st_size:,} bytes instead of {expected:,}")
    crc = 0
    with path.open("rb") as file:
        while block := file.read(READ_BYTES):
            crc = zlib.crc32(block, crc)
    if f"{crc:08x}" != counts.checksum:
        raise CacheUnusable(f"the checksum of {path.name} is wrong")
    return np.memmap(path, dtype=dtype, mode="r")
