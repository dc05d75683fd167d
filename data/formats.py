"""What a file is, told from how it begins; its name only settles what the content leaves open.

Read are UTF-8 text, JSON (lines, or a document) and parquet. All else is refused by name: taken for text, it would
be one story of markup.
"""

from __future__ import annotations

import csv
import json
import re

from config import UserError
from data.cleaning import END_OF_TEXT

HEAD_BYTES = 1 << 16
WHAT_WORKS = f"give UTF-8 text with {END_OF_TEXT} between stories, or .jsonl or .parquet with a column text"

GZIP, PARQUET = b"\x1f\x8b", b"PAR1"
OTHER_COMPRESSION = {
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\xfd7zXZ\x00": "xz",
    b"BZh": "bzip2",
    b"\x04\x22\x4d\x18": "lz4",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
OTHERS = {
    b"PK\x03\x04": "a zip archive, as .docx, .epub, .xlsx, .npz and torch files are",
    b"%PDF": "a PDF",
    b"{\\rtf": "RTF",
    b"SQLite format 3\0": "an SQLite database",
    b"ARROW1": "an Arrow file",
    b"FEA1": "a Feather file",
    b"\xff\xff\xff\xff": "an Arrow stream",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"\x89HDF": "HDF5",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF model",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
    b"\x7fELF": "a program",
    b"\xd0\xcf\x11\xe0": "an old Office document",
    b"version https://git-lfs": "a git-lfs pointer in the place of the file, which git lfs pull fetches",
}
UTF_16_OR_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")
JSON_SUFFIXES = (".json", ".jsonl", ".ndjson", ".jsonlines")
TABLE_SUFFIXES = (".csv", ".tsv", ".tab")
MARKUP_SUFFIXES = (".html", ".htm", ".xhtml", ".xml")
CODE_SUFFIXES = (".yaml", ".yml", ".toml", ".sql", ".py", ".ipynb", ".srt", ".vtt", ".tex")
# Of prose, a bracket may be followed by a quote, but not by a whole string and a comma.
ARRAY = re.compile(r'\[\s*([\[{\]]|"([^"\\\n]|\\.)*"\s*[,\]])')
USUAL_COLUMNS = {"text", "story", "stories", "content", "sentence", "document", "title", "label", "id"}
# Of prose, no line begins so twice, not even of a play.
YAML_KEY = re.compile(r"^(?:- )?(?:text|story|stories|content|sentence|document):(?= |$)", re.M)


def form_of(head: bytes, suffix: str, is_whole: bool, name: str) -> str:
    """ "text", "json lines", "json document" or "parquet".

    Args:
        head: the first HEAD_BYTES, or all there is (`is_whole`), decompressed.
        suffix: of the file's name, as ".txt", or "".
        name: of the file, for messages.
    Raises:
        UserError: it is none of these; says what it is and what would work.
    """
    if head.startswith(PARQUET) or suffix == ".parquet":
        return "parquet"
    _refuse_other_bytes(head, name)
    text = head.decode("utf-8", "replace").replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff \t\n")
    form = _json_form(text, suffix)
    if form:
        return form
    is_parted = END_OF_TEXT in text
    what, text = None, text.replace(END_OF_TEXT, "\n")
    if _is_markup(text) or suffix in MARKUP_SUFFIXES:
        what = "markup (HTML or XML), whose tags would be told as text"
    elif _is_table(text, is_whole, is_parted) or suffix in TABLE_SUFFIXES:
        what = "a table (CSV or TSV), whose commas and quotes would be told as text"
    elif len(YAML_KEY.findall(text)) > 1 or suffix in CODE_SUFFIXES:
        what = "YAML, subtitles or code, whose signs would be told as text"
    if what:
        raise UserError(f"{name} is {what}; {WHAT_WORKS}")
    return "text"


def _refuse_other_bytes(head: bytes, name: str) -> None:
    for magic, what in OTHER_COMPRESSION.items():
        if head.startswith(magic):
            raise UserError(f"{name} is compressed with {what}; decompress it first, or give it as gzip")
    if head.startswith(GZIP):
        raise UserError(f"{name} is gzip inside gzip; decompress it once")
    for magic, what in OTHERS.items():
        if head.startswith(magic):
            raise UserError(f"{name} is {what}; {WHAT_WORKS}")
    if head.startswith(UTF_16_OR_32) or _is_utf_16(head):
        raise UserError(f"{name} is UTF-16 or UTF-32 text; convert it: iconv -f UTF-16 -t UTF-8")
    if head[:1] == b"\x80" and head[1:2] <= b"\x05":
        raise UserError(f"{name} is a Python pickle, which is not opened; {WHAT_WORKS}")
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
        raise UserError(f"{name} holds tensors (safetensors), no stories; {WHAT_WORKS}")
    if head[257:262] == b"ustar":
        raise UserError(f"{name} is a tar archive; unpack it and give one file of it")


def _is_utf_16(head: bytes) -> bool:
    """Without a mark: every other byte of Latin text is zero."""
    sample = head[:4096]
    zeros = [sample[first::2].count(0) * 2 for first in (0, 1)]
    return len(sample) >= 4 and max(zeros) > 0.7 * len(sample) > 7 * min(zeros)


def _json_form(text: str, suffix: str) -> str | None:
    claims = suffix in JSON_SUFFIXES
    line, _, rest = text.partition("\n")
    if re.match(r'\{\s*["}]', text):
        # A first line that is no value by itself and goes on where JSON may: an object over several lines.
        is_spread = _value_of(line) is None and line.rstrip().endswith(("{", "[", ",")) and rest
        return "json document" if is_spread else "json lines"
    if ARRAY.match(text) or (claims and text.startswith("[")):
        return "json document"
    return "json lines" if claims else None


def _value_of(line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_markup(text: str) -> bool:
    if re.match(r"<(!--|(!doctype|\?xml|html)\b)", text, re.I):
        return True
    n_lines = sum(1 for line in text.splitlines() if line.strip())
    n_closed = len(re.findall(r"</[A-Za-z][\w:.-]*\s*>", text))
    if re.match(r"<[A-Za-z!][^<>|]*>", text):
        return 4 * n_closed >= n_lines and n_closed >= 1
    return 2 * n_closed >= n_lines and n_closed >= 3


def _is_table(text: str, is_whole: bool, is_parted: bool) -> bool:
    """Whether text is CSV or TSV: by the names of its columns, or because every row has the same number of fields.

    Stories that END_OF_TEXT parts (`is_parted`) are no rows: short ones may well have alike many signs.
    """
    header = text.partition("\n")[0]
    for delimiter in "\t,;|":
        names = [name.strip('"').lower() for name in header.split(delimiter)]
        if (
            len(names) > 1
            and USUAL_COLUMNS.intersection(names)
            and all(re.fullmatch(r"[\w.-]{0,30}", n) for n in names)
        ):
            return True
        rows = _rows(text, delimiter, is_whole)
        widths = {len(row) for row in rows}
        if len(rows) < 2 or len(widths) != 1:
            continue
        if widths == {1}:
            # One column: its fields are in quotes, under a name or with quotes inside them.
            if header.strip('"').lower() in USUAL_COLUMNS and text[len(header) :].lstrip().startswith('"'):
                return True
            if text.startswith('"') and '""' in text:
                return True
        elif is_parted:
            continue
        elif delimiter == "\t":
            return True
        elif len(rows) > 2:
            # A comma of prose is followed by a space.
            fields = [field for row in rows for field in row[1:]]
            return sum(field[:1] not in ("", " ") for field in fields) > 0.9 * len(fields)
    return False


def _rows(text: str, delimiter: str, is_whole: bool) -> list[list[str]]:
    """The rows that are not empty; none where a quoted field is not closed as it has to be."""
    rows = []
    try:
        for row in csv.reader(text.splitlines(keepends=True), delimiter=delimiter, strict=True):
            rows.append(row)
    except csv.Error as error:
        # A last field may go on behind the head.
        if is_whole or "unexpected end of data" not in str(error):
            return []
    else:
        rows = rows if is_whole else rows[:-1]
    return [row for row in rows if row]
