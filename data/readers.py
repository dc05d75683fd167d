"""The texts in a file of stories: UTF-8 text, JSON lines, a JSON document, parquet; each plain or in gzip.

Every reader yields `str`, uncleaned, and holds a bounded part of its file in memory.
"""

from __future__ import annotations

import codecs
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from config import UserError
from data.cleaning import END_OF_TEXT
from data.formats import GZIP, HEAD_BYTES, WHAT_WORKS, form_of

BLOCK_BYTES = 1 << 20
LONGEST_STORY_CHARACTERS = 16 << 20
BETWEEN_ELEMENTS = re.compile(r"[\s,]*")
# What the column of the texts is called; TinyStories' own files say story. A file may have one of them.
TEXT_COLUMNS = ("text", "story", "content", "document", "body", "article")


@dataclass(frozen=True)
class StoryFile:
    """A regular file, what it holds (see `form_of`), and what messages call it."""

    path: Path
    name: str
    is_gzip: bool
    form: str

    def open(self) -> BinaryIO:
        return gzip.open(self.path) if self.is_gzip else self.path.open("rb")

    def texts(self) -> Iterator[str]:
        """Texts of one or, where END_OF_TEXT is in them, of several stories.

        Raises:
            UserError: while iterating; names the file and the place that cannot be used.
        """
        try:
            with self.open() as stream:
                yield from READERS[self.form](stream, self.name)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise UserError(f"{self.name} is damaged gzip ({error}); copy or compress it anew") from error
        except OSError as error:
            raise UserError(f"{self.name} could not be read to its end: {error.strerror or error}") from error


def story_file(path: Path, name: str | None = None, suffix: str | None = None) -> StoryFile:
    """Looks at the beginning of a file.

    Raises:
        UserError: it holds nothing that is read here, or cannot be read.
    """
    name = name or str(path)
    suffixes = [each.lower() for each in path.suffixes] if suffix is None else [suffix]
    try:
        with path.open("rb") as stream:
            is_gzip = stream.read(2) == GZIP
        file = StoryFile(path, name, is_gzip, "")
        with file.open() as stream:
            head = stream.read(HEAD_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{name} is damaged gzip ({error}); copy or compress it anew") from error
    if is_gzip and suffixes[-1:] == [".gz"]:
        suffixes.pop()
    form = form_of(head[:HEAD_BYTES], "".join(suffixes[-1:]), len(head) <= HEAD_BYTES, name)
    if form == "parquet" and is_gzip:
        raise UserError(f"{name} is parquet inside gzip, which cannot be read in pieces; decompress it first")
    return StoryFile(path, name, is_gzip, form)


def _not_utf8(name: str, offset: int, byte: int) -> UserError:
    return UserError(f"{name} is not UTF-8 text: byte 0x{byte:02x} at offset {offset}; convert the file to UTF-8")


def _decoded_blocks(stream: BinaryIO, name: str) -> Iterator[str]:
    """Text of a file, block by block, without byte-order marks and with line ends as \\n."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    n_read = 0
    while True:
        block = stream.read(BLOCK_BYTES)
        if b"\0" in block:
            raise UserError(
                f"{name} is a binary file: zero byte at offset {n_read + block.index(0)}; "
                f"give UTF-8 text, .jsonl or .parquet"
            )
        n_read += len(block)
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # `error.object` ends where the file was read to; it starts earlier than the
            # block where a character straddles two.
            offset = n_read - len(error.object) + error.start
            raise _not_utf8(name, offset, error.object[error.start]) from None
        yield line_ends.decode(text, final=not block).replace("\ufeff", "")
        if not block:
            return


def read_text(stream: BinaryIO, name: str) -> Iterator[str]:
    for story in _parted(_decoded_blocks(stream, name), END_OF_TEXT):
        if len(story) > LONGEST_STORY_CHARACTERS:
            raise UserError(
                f"{name} has a story of more than {LONGEST_STORY_CHARACTERS:,} characters; "
                f"put {END_OF_TEXT} between stories"
            )
        yield story


def _parted(blocks: Iterator[str], separator: str) -> Iterator[str]:
    """What stands between separators; the last one if it is not blank. A part that has no end is given while it grows."""
    unfinished = ""
    for text in blocks:
        *parts, unfinished = (unfinished + text).split(separator)
        yield from parts
        if len(unfinished) > LONGEST_STORY_CHARACTERS:
            break
    if unfinished.strip():
        yield unfinished


def read_json_lines(stream: BinaryIO, name: str) -> Iterator[str]:
    text_of = TextOfRecords('write {"text": "..."} on every line')
    for number, line in enumerate(_parted(_decoded_blocks(stream, name), "\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name} line {number} is not JSON: {error}; write one object per line") from None
        yield text_of(record, f"{name} line {number}")


def read_json_document(stream: BinaryIO, name: str) -> Iterator[str]:
    """The elements of an array, or objects that follow each other, over any number of lines."""
    decoder, buffer, number, error = json.JSONDecoder(), "", 0, None
    is_array = is_closed = None
    text_of = TextOfRecords('write an array of {"text": "..."}')
    for block in _decoded_blocks(stream, name):
        buffer += block
        position = BETWEEN_ELEMENTS.match(buffer).end()
        if is_array is None and position < len(buffer):
            is_array = buffer[position] == "["
            position = BETWEEN_ELEMENTS.match(buffer, position + is_array).end()
        while position < len(buffer) and not is_closed:
            if is_array and buffer[position] == "]":
                is_closed, position, error = True, position + 1, "something follows the array"
                continue
            try:
                record, position = decoder.raw_decode(buffer, position)
            except (ValueError, RecursionError) as reason:
                error = reason  # or it goes on in the next block
                break
            number += 1
            yield text_of(record, f"{name} element {number}")
            position = BETWEEN_ELEMENTS.match(buffer, position).end()
        buffer = buffer[position:]
        if len(buffer) > LONGEST_STORY_CHARACTERS:
            break
    if buffer.strip() or (is_array and not is_closed):
        why = error if buffer.strip() else "the array has no end"
        raise UserError(f"{name} is not JSON after element {number}: {why}; write one object per line")


class TextOfRecords:
    """The texts of JSON records: strings, or objects that all have the same one of TEXT_COLUMNS.

    Args:
        advice: what the file should be, for messages.
    """

    def __init__(self, advice: str):
        self.advice, self.column = advice, ""

    def __call__(self, record: object, where: str) -> str:
        if isinstance(record, str):
            return record
        if not isinstance(record, dict):
            raise UserError(f"{where} is not a JSON object; {self.advice}")
        held = [name for name in TEXT_COLUMNS if isinstance(record.get(name), str)]
        column = text_column(held, list(record), where) if len(held) > 1 or not self.column else self.column
        self.column = column
        if column not in record:
            raise UserError(f"{where} has no column {column}, as the records before have")
        if not isinstance(record[column], str):
            raise UserError(f"{where}: {column} is {json.dumps(record[column])[:40]}, must be a string")
        return record[column]


def text_column(held: list[str], columns: list[str], where: str) -> str:
    """Which of its columns a file's texts are in.

    Args:
        held: those of TEXT_COLUMNS that hold text.
    Raises:
        UserError: there are several, or none.
    """
    if len(held) > 1:
        raise UserError(f"{where} has text in the columns {', '.join(held)}; leave the one with the stories, as text")
    if held:
        return held[0]
    named = next((name for name in TEXT_COLUMNS if name in columns), None)
    if named is None:
        raise UserError(
            f"{where} has no column text; its columns are {', '.join(columns) or 'none'}; "
            f"call the one with the stories text"
        )
    return named


def read_parquet(stream: BinaryIO, name: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(stream) as file:
            schema = file.schema_arrow
            kinds = {field.name: field.type for field in schema}
            held = [column for column in TEXT_COLUMNS if column in kinds and _holds_text(kinds[column])]
            column = text_column(held, schema.names, name)
            if schema.names.count(column) > 1:
                raise UserError(f"{name} has {schema.names.count(column)} columns {column}; leave one of them")
            if not held:
                raise UserError(f"{name}: the column {column} is of type {kinds[column]}, must be string")
            row = 0
            for batch in file.iter_batches(batch_size=1024, columns=[column]):
                for story in batch.column(0).to_pylist():
                    if story is None:
                        raise UserError(f"{name} row {row}: {column} is null, must be a string")
                    # Some writers leave out that their bytes are text.
                    yield story.decode() if isinstance(story, bytes) else story
                    row += 1
    except UnicodeDecodeError as error:
        raise UserError(f"{name}: the text is not UTF-8 after row {row}; write the file anew") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{name} is not a readable parquet file: {str(error).splitlines()[0]}; {WHAT_WORKS}") from error


def _holds_text(kind) -> bool:
    import pyarrow.types as types

    if types.is_dictionary(kind):
        return _holds_text(kind.value_type)
    tests = (types.is_string, types.is_large_string, types.is_string_view, types.is_binary, types.is_large_binary)
    return any(test(kind) for test in tests)


READERS = {
    "text": read_text,
    "json lines": read_json_lines,
    "json document": read_json_document,
    "parquet": read_parquet,
}
