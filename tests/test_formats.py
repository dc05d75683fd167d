"""The same stories in any file are the same stories; what holds no stories is refused by its content."""

import bz2
import csv
import gzip
import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import threading
import zipfile

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from config import UserError
from data import readers
from data.cleaning import END_OF_TEXT, clean_stories
from data.formats import form_of
from data.readers import story_file
from data.sources import file_source

STORIES = [f'Once upon a time, Tom saw {i} dogs.\nHe said, "Look, {i} dogs!" and ran, fast.' for i in range(60)]
RECORDS = [{"text": story, "n": [1, {"a": None}]} for story in STORIES]
LINES = "\n".join(map(json.dumps, RECORDS))
TEXT = f"\n{END_OF_TEXT}\n".join(STORIES)


def plainly(value) -> str:
    """How a case is called, the same in every process: gzip holds the time."""
    return value if isinstance(value, str) and value.isprintable() and len(value) < 60 else "content"


def written(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def stories_of(path):
    return [story for story, _ in clean_stories(story_file(path).texts()) if story]


def parquet(stories, kind=None, name="text"):
    column = pyarrow.array(stories)
    if kind is not None:
        column = column.dictionary_encode().cast(kind) if pyarrow.types.is_dictionary(kind) else column.cast(kind)
    sink = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({name: column, "n": pyarrow.array(range(len(stories)))}), sink, row_group_size=7
    )
    return sink.getvalue()


def twice():
    """A parquet file with two columns of one name."""
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table([pyarrow.array(STORIES)] * 2, names=["text", "text"]), sink)
    return sink.getvalue()


def table(rows, **options):
    sink = io.StringIO()
    csv.writer(sink, **options).writerows(rows)
    return sink.getvalue()


@pytest.mark.parametrize(
    "name, content",
    [
        ("a.txt", TEXT),
        ("a", END_OF_TEXT + TEXT + END_OF_TEXT + "\n"),
        ("a.jsonl", LINES),
        ("a.ndjson", LINES + "\n\n"),
        ("a.jsonlines", LINES.replace("\n", "\r\n")),
        ("old_mac.jsonl", LINES.replace("\n", "\r")),
        ("lines.json", LINES),
        ("lines.txt", LINES),
        ("marked.jsonl", "\ufeff" + LINES.replace("\n", "\n\ufeff")),
        ("array.json", "[" + LINES.replace("\n", ",\n") + "]\n"),
        ("one_line.json", json.dumps(RECORDS)),
        ("spread.json", json.dumps(RECORDS, indent=2)),
        ("spread", json.dumps(RECORDS, indent=2)),
        ("objects.json", "\n".join(json.dumps(record, indent=1) for record in RECORDS)),
        ("strings.json", json.dumps(STORIES)),
        ("strings.txt", json.dumps(STORIES, indent=1)),
        ("strings.jsonl", "\n".join(map(json.dumps, STORIES))),
        ("a.parquet", parquet(STORIES)),
        ("a.txt", parquet(STORIES)),
        ("large.parquet", parquet(STORIES, pyarrow.large_string())),
        ("view.parquet", parquet(STORIES, pyarrow.string_view())),
        ("dictionary.parquet", parquet(STORIES, pyarrow.dictionary(pyarrow.int32(), pyarrow.string()))),
        ("large_dictionary.parquet", parquet(STORIES, pyarrow.dictionary(pyarrow.int8(), pyarrow.large_string()))),
        ("bytes.parquet", parquet(STORIES, pyarrow.binary())),
        ("a.txt.gz", gzip.compress(TEXT.encode())),
        ("hidden_gzip.txt", gzip.compress(TEXT.encode())),
        ("a.jsonl.gz", gzip.compress(LINES.encode())),
        ("a.json.gz", gzip.compress(json.dumps(STORIES).encode())),
        ("story.jsonl", LINES.replace('"text"', '"story"')),
        ("content.json", json.dumps([{"id": "a", "text": None, "content": story} for story in STORIES], indent=1)),
        ("story.parquet", parquet(STORIES, name="story")),
        ("two_members.gz", gzip.compress(TEXT[:999].encode()) + gzip.compress(TEXT[999:].encode())),
    ],
    ids=plainly,
)
@pytest.mark.parametrize("block_bytes", [64, 1 << 20])
def test_what_people_have_is_read(tmp_path, monkeypatch, name, content, block_bytes):
    monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
    assert stories_of(written(tmp_path, name, content)) == STORIES


def packed(kind):
    sink = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(sink, "w") as archive:
            archive.writestr("stories.txt", TEXT)
    else:
        with tarfile.open(fileobj=sink, mode="w") as archive:
            archive.addfile(tarfile.TarInfo("stories.txt"), io.BytesIO())
    return sink.getvalue()


def arrow(stream):
    sink, stories = io.BytesIO(), pyarrow.table({"text": STORIES})
    if stream:
        with pyarrow.ipc.new_stream(sink, stories.schema) as writer:
            writer.write_table(stories)
    else:
        pyarrow.feather.write_feather(stories, sink)
    return sink.getvalue()


NUMBERED = list(enumerate(STORIES))
ON_ONE_LINE = [[i, story.replace("\n", " ")] for i, story in NUMBERED]
SAFETENSORS = (60).to_bytes(8, "little") + b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}      \0\0\0\0'


@pytest.mark.parametrize(
    "what, content",
    [
        ("a table", table([["text"], *([story] for story in STORIES)])),
        ("a table", table([["text"], *([story * 400] for story in STORIES)])),
        ("a table", table([["id", "text"], *NUMBERED])),
        ("a table", table([["", "text"], *NUMBERED], lineterminator="\n")),
        ("a table", table(NUMBERED)),
        ("a table", table([[story] for story in STORIES], quoting=csv.QUOTE_ALL)),
        ("a table", table([["number", "words"], *NUMBERED], delimiter=";")),
        ("a table", table(ON_ONE_LINE, delimiter="\t")),
        ("a table", table([[i, "x", story] for i, story in NUMBERED], delimiter="|")),
        ("a table", "id,text\n" + "\n".join(f"{i},{story}" for i, story in NUMBERED)),
        ("markup", f"<!DOCTYPE html><html><body><p>{'<p>'.join(STORIES)}"),
        ("markup", f'<?xml version="1.0"?>\n<stories>{TEXT}</stories>'),
        ("markup", "\n".join(f"<p>{story}</p>" for story in STORIES)),
        ("markup", "<!-- all -->\n<div>\n" + "\n".join(f"<p>{story}</p>" for story in STORIES) + "</div>"),
        ("UTF-16", TEXT.encode("utf-16")),
        ("UTF-16", TEXT.encode("utf-16-le")),
        ("UTF-16", TEXT.encode("utf-16-be")),
        ("UTF-32", TEXT.encode("utf-32")),
        ("not UTF-8 text: byte 0xe9", (TEXT + " café").encode("latin-1")),
        ("zip archive", packed("zip")),
        ("tar archive", packed("tar")),
        ("tar archive", gzip.compress(packed("tar"))),
        ("pickle", pickle.dumps(STORIES)),
        ("safetensors", SAFETENSORS),
        ("a PDF", b"%PDF-1.7\n%\xe2\xe3"),
        ("SQLite", b"SQLite format 3\0" + bytes(100)),
        ("Arrow file", arrow(stream=False)),
        ("Arrow stream", arrow(stream=True)),
        ("git-lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 9\n"),
        ("compressed with bzip2", bz2.compress(TEXT.encode())),
        ("compressed with zstd", b"\x28\xb5\x2f\xfd" + bytes(9)),
        ("gzip inside gzip", gzip.compress(gzip.compress(TEXT.encode()))),
        ("parquet inside gzip", gzip.compress(parquet(STORIES))),
        ("damaged gzip", gzip.compress(TEXT.encode())[:-20]),
        ("damaged gzip", b"\x1f\x8b" + b"abc" * 30),
        ("the array has no end", "[" + LINES.replace("\n", ",\n")),
        ("something follows the array", json.dumps(RECORDS) + " and more"),
        ("has no column text; its columns are name", json.dumps([{"name": story} for story in STORIES])),
        ("text in the columns story, content", json.dumps([{"story": s, "content": s} for s in STORIES])),
        ("has no column text; its columns are data, version", json.dumps({"data": RECORDS, "version": 1}, indent=1)),
        ("must be a string", json.dumps({"text": STORIES})),
        ("YAML", "".join(f"- text: {json.dumps(story)}\n  id: 1\n" for story in STORIES)),
        ("markup", "<!-- stories -->\n<div>" + TEXT),
        ("has 2 columns text", twice()),
        ("must be string", parquet([[story] for story in STORIES])),
    ],
    ids=plainly,
)
def test_what_holds_no_stories_is_refused_whatever_its_name(tmp_path, what, content):
    with pytest.raises(UserError, match=r"^\S*stories\.txt\b") as refused:
        stories_of(written(tmp_path, "stories.txt", content))
    assert what in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "html", "xml", "yaml", "srt"])
def test_a_name_that_says_table_or_markup_is_believed(tmp_path, suffix):
    with pytest.raises(UserError, match="table|markup|YAML, subtitles"):
        stories_of(written(tmp_path, f"stories.{suffix}", TEXT))


@pytest.mark.parametrize(
    "text",
    [
        "Twinkle, twinkle\nlittle, star\nhow, I wonder",
        "Twinkle twinkle,\nlittle star,\nhow I wonder,",
        '"Hello!"\n"Hi!"\n"Bye."',
        "Tom: Hello!\nAnn: Hi!\nTom: Bye.",
        '"Hi," said Tom.\n"Bye," said Ann.\n"No," said Sue.',
        "{Chapter 1} Once",
        "[Chapter 1]\nOnce",
        '["Hi," she said] Once',
        "# Title\n\n- a\n- b | c\n\n| a | b |\n|---|---|\n| 1 | 2 |",
        "<3 said the card.",
        "He wrote <b>no</b> on it.\nShe left.\nThe end.",
    ],
)
def test_prose_that_looks_like_something_else_is_read(tmp_path, text):
    for is_whole in (True, False):
        assert form_of(text.encode(), ".txt", is_whole, "it") == "text"
    assert stories_of(written(tmp_path, "prose.txt", text)) == [text]


# Texts of all sorts; those that are blank, and separators, are laid between them on purpose.
story_text = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff") | st.sampled_from("\n\r\t <|>ab"),
    max_size=40,
)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@example([";0"] * 3, "\n")
@given(st.lists(story_text, min_size=1, max_size=6), st.sampled_from(["\n", "\r\n", "\r"]))
def test_the_same_stories_in_any_format_are_the_same_stories(tmp_path_factory, texts, line_end):
    folder = tmp_path_factory.mktemp("formats")
    texts = [f"Tom. {text}" for text in texts]
    expected = [story for story, _ in clean_stories(texts)]
    told = [text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", line_end) for text in texts]
    joined = f"{line_end}{END_OF_TEXT}{line_end}".join(told)
    marked = f"{END_OF_TEXT}\ufeff".join(told)
    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in told)
    files = {
        "a.txt": joined.encode(),
        "marked.txt": b"\xef\xbb\xbf" + marked.encode(),
        "a.jsonl": lines.encode(),
        "ascii.jsonl": "\r\n".join(json.dumps({"text": text}) for text in told).encode(),
        "a.json": json.dumps(told, indent=1).encode(),
        "all_in_one.jsonl": json.dumps({"text": joined}).encode(),
        "a.parquet": parquet(told),
        "all_in_one.parquet": parquet([joined]),
        "a.txt.gz": gzip.compress(joined.encode()),
    }
    for name, content in files.items():
        found = [story for story, _ in clean_stories(story_file(written(folder, name, content)).texts())]
        assert found == expected, name


def test_a_links_name_says_what_the_name_of_its_file_does_not_and_the_other_way_round(tmp_path):
    """In the hub's cache files have the names of their checksums, and links to them their own."""
    strings = "\n".join(json.dumps(story) for story in STORIES)
    for link, file in (("stories.jsonl", "3fa9c0"), ("latest", "other.jsonl")):
        written(tmp_path, file, strings)
        os.symlink(file, tmp_path / link)
        source = file_source(str(tmp_path / link), "")
        assert [story for story, _ in clean_stories(source.train())] == STORIES
        assert source.description == str((tmp_path / file).resolve())
    written(tmp_path, "c0ffee", "one\ntwo\n")
    os.symlink("c0ffee", tmp_path / "table.csv")
    with pytest.raises(UserError, match="is a table"):
        file_source(str(tmp_path / "table.csv"), "")


def test_a_lone_surrogate_is_one_character_that_is_none(tmp_path):
    assert stories_of(written(tmp_path, "a.jsonl", r'{"text": "a \ud800 b \ud83e\udd8a"}')) == ["a \ufffd b \U0001f98a"]


def test_stories_come_through_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Thread(target=lambda: (tmp_path / "pipe").write_bytes(gzip.compress(LINES.encode())))
    writer.start()
    source = file_source(str(tmp_path / "pipe"), "")
    writer.join(10)
    for _ in range(2):  # a pipe can be read once, its stories twice
        assert [story for story, _ in clean_stories(source.train())] == STORIES
    assert (
        source.fingerprint == file_source(str(written(tmp_path, "a.gz", gzip.compress(LINES.encode()))), "").fingerprint
    )


COUNT = """
import sys
from data.cleaning import clean_stories
from data.sources import file_source
print(sum(1 for _ in clean_stories(file_source(sys.argv[1], "").train())))
"""


@pytest.mark.parametrize("content", [TEXT.encode(), LINES.encode(), parquet(STORIES)], ids=["text", "lines", "parquet"])
def test_stories_come_through_standard_input(monkeypatch, content):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    source = file_source("-", "")
    assert [story for story, _ in clean_stories(source.train())] == STORIES and source.description == "standard input"


def test_stories_come_through_the_device_of_standard_input():
    done = subprocess.run(
        [sys.executable, "-c", COUNT, "/dev/stdin"], input=LINES.encode(), capture_output=True, check=True
    )
    assert int(done.stdout) == len(STORIES)


def test_standard_input_that_gives_nothing_is_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(UserError, match="data is '-', which is empty"):
        file_source("-", "")
    with pytest.raises(UserError, match="both standard input"):
        file_source("-", "-")


def test_a_pipe_is_refused_where_several_processes_would_have_to_read_it(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a")))
    with pytest.raises(UserError, match="only one of several processes could read; give a file"):
        file_source("-", "")


def test_a_device_is_no_file():
    with pytest.raises(UserError, match="data is '/dev/zero', which is a device"):
        file_source("/dev/zero", "")
