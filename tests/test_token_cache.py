import json
import threading

import numpy as np
import pytest
import tiktoken

from config import UserError
from data import token_cache
from data.sources import StorySource
from data.token_cache import CacheUnusable, TokenNeed, cache_folder, load_or_build, load_tokens, token_dtype

BYTES = tiktoken.Encoding(
    "bytes",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([i]): i for i in range(256)},
    special_tokens={"<|endoftext|>": 256},
)
TRAIN = [f"Tom saw {i} dogs." for i in range(200)]
VALID = [f"Lily saw {i} cats." for i in range(50)]
# The ids of bytes and of the end of text are those of `BYTES`, 70,000 higher.
LARGE = tiktoken.Encoding(
    "large",
    pat_str=r"[\s\S]",
    mergeable_ranks={bytes([i]): 70_000 + i for i in range(256)},
    special_tokens={f"<{i}>": i for i in range(70_000)} | {"<|endoftext|>": 70_256},
)


class Source:
    """Counts the stories that are read."""

    def __init__(self, train=TRAIN, valid=VALID):
        self.n_read = 0
        self.source = StorySource(
            "stories", "test stories", "1", lambda: self.read(train), (lambda: self.read(valid)) if valid else None
        )

    def read(self, stories):
        for story in stories:
            self.n_read += 1
            yield story


def build(cache_dir, source, need=None, say=lambda line: None, encoding=BYTES):
    return load_or_build(cache_dir, source.source, "bytes", encoding, need, say)


def stories_of(tokens):
    return BYTES.decode(tokens.tolist()).split("<|endoftext|>")[:-1]


def test_every_story_is_followed_by_one_end_of_text(tmp_path):
    tokens = build(tmp_path, Source())
    assert stories_of(tokens.train) == TRAIN and stories_of(tokens.valid) == VALID
    assert isinstance(tokens.train, np.memmap) and tokens.train.dtype == np.uint16
    assert tokens.train_counts.n_tokens == len(tokens.train) == sum(len(story) + 1 for story in TRAIN)
    assert (tokens.train_counts.n_stories, tokens.valid_counts.n_stories) == (200, 50)


def test_second_load_reads_no_story(tmp_path):
    build(tmp_path, Source())
    source = Source()
    build(tmp_path, source)
    assert source.n_read == 0


def test_a_literal_end_of_text_parts_two_stories(tmp_path):
    tokens = build(tmp_path, Source(train=["a <|endoftext|> b"]))
    assert stories_of(tokens.train) == ["a", "b"] and tokens.train_counts.n_stories == 2


def test_cleaning_is_counted(tmp_path):
    tokens = build(tmp_path, Source(train=["itâ€™s", "", "  \n", " good ", "â€œHi"], valid=["so", " "]))
    assert stories_of(tokens.train) == ["it’s", "good", "“Hi"]
    assert (tokens.train_counts.repaired, tokens.train_counts.dropped, tokens.valid_counts.dropped) == (2, 2, 1)


def test_overlap_counts_distinct_cleaned_validation_stories(tmp_path):
    tokens = build(tmp_path, Source(train=["a", "a", "itâ€™s", "c"], valid=["it’s ", " a", "a", "d"]))
    assert tokens.overlap == 2


def test_chunks_do_not_change_the_tokens(tmp_path, monkeypatch):
    whole = build(tmp_path / "whole", Source())
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 50)
    chunked = build(tmp_path / "chunked", Source())
    assert whole.train_counts == chunked.train_counts and whole.valid_counts == chunked.valid_counts


def test_held_out_split_is_by_text(tmp_path):
    tokens = build(tmp_path, Source(train=TRAIN + TRAIN, valid=None))
    train, valid = stories_of(tokens.train), stories_of(tokens.valid)
    assert sorted(train + valid) == sorted(TRAIN + TRAIN)
    assert not set(train) & set(valid) and tokens.overlap == 0
    assert 0 < len(valid) < len(TRAIN) / 5


@pytest.mark.parametrize(
    "stories, message",
    [
        ([" ", ""], "test stories holds no stories: 2 are there, all of them empty"),
        (["only one"], "too few stories .1. to hold out one in 20; put <|endoftext|> between stories, .*--valid-data"),
    ],
)
def test_too_few_stories(tmp_path, stories, message):
    with pytest.raises(UserError, match=message.replace("|", "[|]")):
        build(tmp_path, Source(train=stories, valid=None))
    assert not list(tmp_path.glob("stories*"))


def test_validation_without_stories(tmp_path):
    with pytest.raises(UserError, match="the validation file holds no stories"):
        build(tmp_path, Source(valid=[" "]))


def flip_a_byte(folder):
    raw = bytearray((folder / "train.bin").read_bytes())
    raw[100] ^= 1
    (folder / "train.bin").write_bytes(raw)


def truncate(folder):
    (folder / "valid.bin").write_bytes((folder / "valid.bin").read_bytes()[:-2])


def tear_meta(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text[: len(text) // 2])


def change_a_count(folder):
    text = (folder / "meta.json").read_text()
    (folder / "meta.json").write_text(text.replace('"n_stories": 200', '"n_stories": 201'))


def lose_a_key(folder):
    meta = json.loads((folder / "meta.json").read_text())
    del meta["overlap"]
    (folder / "meta.json").write_text(json.dumps(meta))


def lose_a_file(folder):
    (folder / "train.bin").unlink()


@pytest.mark.parametrize(
    "damage, reason",
    [
        (flip_a_byte, "the checksum of train.bin is wrong"),
        (truncate, "valid.bin has 1,778 bytes instead of 1,780"),
        (tear_meta, "line"),
        (change_a_count, "checksum of meta.json"),
        (lose_a_key, "meta.json is incomplete"),
        (lose_a_file, "No such file"),
    ],
)
def test_damage_is_noticed_and_repaired(tmp_path, damage, reason):
    folder = build(tmp_path, Source()).folder
    damage(folder)
    with pytest.raises(CacheUnusable, match=reason):
        load_tokens(folder, BYTES, None)
    lines = []
    tokens = build(tmp_path, Source(), say=lines.append)
    assert stories_of(tokens.train) == TRAIN
    assert len(lines) == 1 and str(folder) in lines[0] and lines[0].endswith("tokenising again.")
    assert load_tokens(folder, BYTES, None) is not None


def test_tokens_of_another_vocabulary_are_not_used(tmp_path):
    build(tmp_path, Source())
    other = tiktoken.Encoding(
        "bytes",
        pat_str=r"[\s\S]",
        mergeable_ranks={bytes([255 - i]): i for i in range(256)},
        special_tokens={"<|endoftext|>": 256},
    )
    lines = []
    tokens = build(tmp_path, Source(), say=lines.append, encoding=other)
    assert "another vocabulary" in lines[0]
    assert other.decode(tokens.train[:5].tolist()) == TRAIN[0][:5]


def test_ids_take_two_bytes_where_all_of_the_vocabulary_fit_and_otherwise_four(tmp_path):
    assert [token_dtype(n) for n in (257, 65_536, 65_537, 128_256)] == ["<u2", "<u2", "<u4", "<u4"]
    small, large = build(tmp_path / "small", Source()), build(tmp_path / "large", Source(), encoding=LARGE)
    for of_small, of_large in ((small.train, large.train), (small.valid, large.valid)):
        assert of_large.dtype == np.uint32 and np.array_equal(of_large, of_small + np.uint32(70_000))
    assert not np.array_equal(large.train, large.train.astype(np.uint16)), "wrapped ids would be seen"


@pytest.mark.parametrize("written, read", [(BYTES, LARGE), (LARGE, BYTES)])
def test_tokens_of_another_type_are_made_again_and_not_misread(tmp_path, written, read):
    folder = build(tmp_path, Source(), encoding=written).folder
    with pytest.raises(CacheUnusable, match="another vocabulary"):
        load_tokens(folder, read, None)
    # Even one whose counts and checksums are sound.
    meta = json.loads((folder / "meta.json").read_text()) | {"vocabulary": token_cache._vocabulary_checksum(read)}
    del meta["checksum"]
    (folder / "meta.json").write_text(json.dumps(meta | {"checksum": token_cache._meta_checksum(meta)}))
    with pytest.raises(CacheUnusable, match="valid.bin|train.bin has .* bytes instead of"):
        load_tokens(folder, read, None)
    tokens = build(tmp_path, Source(), say=lambda line: None, encoding=read)
    assert np.array_equal(tokens.train, build(tmp_path / "new", Source(), encoding=read).train)


def test_interrupted_build_leaves_no_folder(tmp_path):
    def breaks_off():
        yield from TRAIN[:20]
        raise KeyboardInterrupt

    source = StorySource("stories", "test stories", "1", breaks_off, lambda: iter(VALID))
    with pytest.raises(KeyboardInterrupt):
        load_or_build(tmp_path, source, "bytes", BYTES, None, print)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []
    assert len(stories_of(build(tmp_path, Source()).train)) == 200


def test_what_a_killed_build_left_is_removed(tmp_path):
    folder = cache_folder(tmp_path, Source().source, "bytes")
    left = tmp_path / f".{folder.name}.building"
    left.mkdir()
    (left / "train.bin").write_bytes(b"torn")
    build(tmp_path, Source())
    assert not left.exists()


def test_two_builders_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 200)
    first_is_reading, go_on = threading.Event(), threading.Event()

    def waits():
        first_is_reading.set()
        go_on.wait(10)
        yield from TRAIN

    first_source = StorySource("stories", "test stories", "1", waits, lambda: iter(VALID))
    second, found, lines = Source(), [], []

    def say(line):
        lines.append(line)
        go_on.set()

    first = threading.Thread(
        target=lambda: found.append(load_or_build(tmp_path, first_source, "bytes", BYTES, None, print))
    )
    first.start()
    assert first_is_reading.wait(10)
    found.append(build(tmp_path, second, say=say))
    first.join(10)
    assert len(found) == 2 and (found[0].train == found[1].train).all()
    assert second.n_read == 0 and "waiting for it" in lines[0]


def test_need_bounds_what_is_read_and_a_larger_need_reads_more(tmp_path, monkeypatch):
    monkeypatch.setattr(token_cache, "CHUNK_CHARACTERS", 1)
    source = Source()
    tokens = build(tmp_path, source, TokenNeed(train=100, valid=40))
    assert 100 <= len(tokens.train) < 120 and 40 <= len(tokens.valid) < 60
    assert source.n_read < 12 and not tokens.train_counts.complete

    again = Source()
    build(tmp_path, again, TokenNeed(train=100, valid=40))
    assert again.n_read == 0

    lines = []
    more = build(tmp_path, again, TokenNeed(train=300, valid=40), say=lines.append)
    assert "of 300 train tokens" in lines[0]
    assert (more.train[: len(tokens.train)] == tokens.train).all() and len(more.train) >= 300


def test_a_source_that_has_no_more_is_not_read_again(tmp_path):
    need = TokenNeed(train=10**6, valid=10**6)
    assert build(tmp_path, Source(), need).train_counts.complete
    again = Source()
    build(tmp_path, again, need)
    assert again.n_read == 0


def test_cache_dir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cache_dir '.*file/cache' cannot be written to: .*--cache-dir"):
        build(tmp_path / "file" / "cache", Source())


def test_full_disk(tmp_path, monkeypatch):
    def full(file):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_cache, "sync", full)
    with pytest.raises(UserError, match="No space left on device; give another folder with --cache-dir"):
        build(tmp_path, Source())
    assert not list(tmp_path.glob("stories*"))
