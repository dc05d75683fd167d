"""Where stories come from: files, the built-in stories; TinyStories itself is in `hub.py`.

Every reader yields one `str` per story, uncleaned, and holds a bounded part of its file
in memory.
"""

from __future__ import annotations

import codecs
import functools
import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from config import UserError
from data.tokenizer import END_OF_TEXT

BLOCK_BYTES = 1 << 20
LONGEST_STORY_CHARACTERS = 16 << 20


@dataclass(frozen=True)
class StorySource:
    """Stories for training and validation, opened anew by each call.

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


def file_source(data: str, valid_data: str) -> StorySource:
    """Stories of local files; `valid_data` may be empty.

    Raises:
        UserError: a path is missing, a folder, empty or unreadable.
    """
    train, train_stat = _checked_file(data, "data")
    fingerprint = f"{train} {train_stat.st_size} {train_stat.st_mtime_ns}"
    description = str(train)
    valid = None
    if valid_data:
        valid, valid_stat = _checked_file(valid_data, "valid_data")
        fingerprint += f" {valid} {valid_stat.st_size} {valid_stat.st_mtime_ns}"
        description += f", validation {valid}"
    return StorySource(
        label=re.sub(r"[^A-Za-z0-9_-]+", "_", train.stem)[:40],
        description=description,
        fingerprint=fingerprint,
        train=lambda: read_stories(train),
        valid=(lambda: read_stories(valid)) if valid else None,
    )


def _checked_file(given: str, setting: str):
    path = Path(given).expanduser().resolve()
    try:
        stat = path.stat()
        if path.is_dir():
            raise UserError(f"{setting} is {given!r}, which is a folder; give one .txt, .jsonl or .parquet file")
        with path.open("rb"):
            pass
    except FileNotFoundError:
        raise UserError(f"{setting} is {given!r}, but there is no such file") from None
    except OSError as error:
        raise UserError(f"{setting} is {given!r}, which cannot be read: {error.strerror}") from error
    if stat.st_size == 0:
        raise UserError(f"{setting} is {given!r}, which is empty (0 bytes); give a file with stories")
    return path, stat


def read_stories(path: Path) -> Iterator[str]:
    """The stories of one file: .jsonl and .parquet by their `text` column, all else as text.

    Raises:
        UserError: while iterating; names the file and the place that cannot be used.
    """
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet}
    try:
        yield from readers.get(path.suffix.lower(), _read_text)(path)
    except OSError as error:
        raise UserError(f"{path} could not be read to its end: {error.strerror or error}") from error


def _not_utf8(path: Path, offset: int, byte: int) -> UserError:
    return UserError(f"{path} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; convert the file to UTF-8")


def _decoded_blocks(path: Path) -> Iterator[str]:
    """Text of a file, block by block, without byte-order mark and with line ends as \\n."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    n_read = 0
    with path.open("rb") as file:
        while True:
            block = file.read(BLOCK_BYTES)
            if b"\0" in block:
                raise UserError(
                    f"{path} is a binary file: zero byte at offset {n_read + block.index(0)}; "
                    f"give UTF-8 text, .jsonl or .parquet"
                )
            n_read += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                # `error.object` ends where the file was read to; it starts earlier than the
                # block where a character straddles two.
                offset = n_read - len(error.object) + error.start
                raise _not_utf8(path, offset, error.object[error.start]) from None
            yield line_ends.decode(text, final=not block)
            if not block:
                return


def _read_text(path: Path) -> Iterator[str]:
    unfinished = ""
    for text in _decoded_blocks(path):
        *stories, unfinished = (unfinished + text).split(END_OF_TEXT)
        yield from stories
        if len(unfinished) > LONGEST_STORY_CHARACTERS:
            raise UserError(
                f"{path} has a story of more than {LONGEST_STORY_CHARACTERS:,} characters; "
                f"put {END_OF_TEXT} between stories"
            )
    # A file may end with the separator and a line end: no story starts after it.
    if unfinished.strip():
        yield unfinished


def _read_jsonl(path: Path) -> Iterator[str]:
    offset = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _not_utf8(path, offset + error.start, error.object[error.start]) from None
            offset += len(line)
            if not text.strip():
                continue
            try:
                record = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise UserError(f"{path} line {number} is not JSON: {error}; write one object per line") from None
            if not isinstance(record, dict):
                raise UserError(f'{path} line {number} is not a JSON object; write {{"text": "..."}} on every line')
            if "text" not in record:
                raise UserError(
                    f"{path} line {number} has no column text; its columns are {', '.join(record) or 'none'}"
                )
            if not isinstance(record["text"], str):
                raise UserError(f"{path} line {number}: text is {json.dumps(record['text'])[:40]}, must be a string")
            yield record["text"]


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            if "text" not in schema.names:
                raise UserError(f"{path} has no column text; its columns are {', '.join(schema.names) or 'none'}")
            kind = schema.field("text").type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{path}: the column text is of type {kind}, must be string")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for story in batch.column(0).to_pylist():
                    if story is None:
                        raise UserError(f"{path} row {row}: text is null, must be a string")
                    yield story
                    row += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: the column text is not UTF-8 after row {row}; write the file anew") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
