import dataclasses
import json
import os
import sys
import time

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch

from config import TrainingConfig, UserError
from data import builtin_stories, hub, loading, readers
from data.tokenizer import TokenizerUnavailable, load_tokenizer

STORIES = [f"Once there was a dog named Spot. Spot had {i} red balls and was happy." for i in range(400)]
HELD_OUT = [f"Lily saw {i} blue birds. She smiled and said hello to the birds." for i in range(60)]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """The hub is gone, nothing is cached, the only tokenizer and the few stories are built in."""

    def only_builtin(name):
        if name == "gpt2":
            raise TokenizerUnavailable("the gpt2 tokenizer is gone; use --tokenizer builtin")
        return load_tokenizer(name)

    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(hub, "reachable", lambda url, seconds: False)
    monkeypatch.setattr(hub, "cached_copy_exists", lambda: False)
    monkeypatch.setattr(loading, "load_tokenizer", only_builtin)
    monkeypatch.setattr(builtin_stories, "builtin_split", lambda: (STORIES[:200], HELD_OUT))


@pytest.fixture
def config(tmp_path):
    return TrainingConfig(
        batch_size=2,
        context_length=16,
        steps_phase1=4,
        steps_phase2=0,
        steps_phase3=0,
        eval_batches=2,
        tokenizer="builtin",
        cache_dir=str(tmp_path / "cache"),
    )


def write_text(path, stories):
    path.write_text("\n<|endoftext|>\n".join(stories) + "\n<|endoftext|>\n", encoding="utf-8")
    return str(path)


def write_jsonl(path, stories):
    path.write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    return str(path)


def write_parquet(path, stories, column="text"):
    pyarrow.parquet.write_table(
        pyarrow.table({column: stories, "n": list(range(len(stories)))}), path, row_group_size=64
    )
    return str(path)


def load(config, **changes):
    lines = []
    return loading.load_data(dataclasses.replace(config, **changes), lines.append), lines


def refusal(config, **changes):
    with pytest.raises(UserError) as error:
        load(config, **changes)
    text = str(error.value)
    assert "\n" not in text
    return text


class FakeHub:
    """Stands in for `datasets` and a reachable hub; counts connections and stories."""

    def __init__(self, monkeypatch, fails_after=None):
        self.n_probes, self.n_read, self.fails_after = 0, 0, fails_after
        monkeypatch.setattr(hub, "reachable", self.probe)
        monkeypatch.setattr(hub, "_load_stream", self.load)
        self.monkeypatch = monkeypatch

    def probe(self, url, seconds):
        self.n_probes += 1
        return True

    def load(self, datasets, split):
        for story in {"train": STORIES, "validation": HELD_OUT}[split]:
            if self.n_read == self.fails_after:
                raise ConnectionError("connection reset\nby peer")
            self.n_read += 1
            yield {"text": story}

    def vanish(self):
        self.monkeypatch.setattr(hub, "reachable", lambda url, seconds: False)


# local files


def test_three_formats_give_the_same_tokens(config, tmp_path):
    found = []
    for suffix, write in (("txt", write_text), ("jsonl", write_jsonl), ("parquet", write_parquet)):
        train, valid = write(tmp_path / f"train.{suffix}", STORIES), write(tmp_path / f"valid.{suffix}", HELD_OUT)
        found.append(load(config, data=train, valid_data=valid)[0])
    assert found[0].summary["train"] == found[1].summary["train"] == found[2].summary["train"]
    assert found[0].summary["valid"] == found[1].summary["valid"] == found[2].summary["valid"]
    assert found[0].summary["train"]["n_stories"] == 400


def test_text_is_read_in_blocks(tmp_path, monkeypatch):
    stories = [story + " — “é”\nThe end." for story in STORIES[:30]] + ["no separator after this"]
    path = tmp_path / "stories.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "<|endoftext|>".join(stories).replace("\n", "\r\n").encode())
    for block_bytes in (1, 7, 64, 1 << 20):
        monkeypatch.setattr(readers, "BLOCK_BYTES", block_bytes)
        assert list(readers.story_file(path).texts()) == stories


def test_empty_story_between_separators_is_a_story_to_drop(tmp_path):
    path = tmp_path / "stories.txt"
    path.write_text("a<|endoftext|>\n<|endoftext|>b<|endoftext|>\n")
    assert list(readers.story_file(path).texts()) == ["a", "\n", "b"]


def test_changed_file_is_tokenised_again(config, tmp_path):
    path = tmp_path / "stories.txt"
    write_text(path, STORIES)
    first, _ = load(config, data=str(path))
    write_text(path, STORIES + HELD_OUT)
    second, _ = load(config, data=str(path))
    assert len(second.train) > len(first.train)


def test_another_text_of_the_same_name_size_and_date_is_tokenised_again(config, tmp_path):
    path = tmp_path / "stories.txt"
    write_text(path, STORIES)
    date = path.stat().st_mtime_ns
    first, _ = load(config, data=str(path))
    path.write_bytes(path.read_bytes().replace(b"Spot", b"Rory"))
    os.utime(path, ns=(date, date))
    second, _ = load(config, data=str(path))
    assert "Rory" in second.tokenizer.decode(second.train.tolist())
    assert first.summary["train"]["checksum"] != second.summary["train"]["checksum"]


def test_the_same_text_with_another_date_is_not_tokenised_again(config, tmp_path):
    path = tmp_path / "stories.txt"
    write_text(path, STORIES)
    load(config, data=str(path))
    os.utime(path, ns=(1, 1))
    load(config, data=str(path))
    assert len(list((tmp_path / "cache").glob("stories-*"))) == 1


def test_single_file_is_split_by_story(config, tmp_path):
    found, _ = load(config, data=write_text(tmp_path / "stories.txt", STORIES + STORIES))
    summary = found.summary
    assert summary["train"]["n_stories"] + summary["valid"]["n_stories"] == 800
    assert summary["overlap"] == 0 and summary["valid"]["n_stories"] % 2 == 0


def test_counts_are_printed(config, tmp_path):
    train = write_jsonl(tmp_path / "train.jsonl", [*STORIES, "", "Itâ€™s late.", HELD_OUT[0]])
    found, lines = load(config, data=train, valid_data=write_jsonl(tmp_path / "valid.jsonl", HELD_OUT))
    assert len(lines) == 2 and train in lines[0] and "tokenizer builtin" in lines[0]
    assert lines[1].startswith(f"402 training stories ({len(found.train):,} tokens), 60 validation stories")
    assert lines[1].endswith("1 repaired, 1 empty ones dropped, 1 validation stories also in training")


def test_bytes_per_token(config, tmp_path):
    valid = [story + " “é”" for story in HELD_OUT]
    found, _ = load(
        config, data=write_text(tmp_path / "t.txt", STORIES), valid_data=write_text(tmp_path / "v.txt", valid)
    )
    n_bytes = sum(len(story.encode()) for story in valid)
    assert found.bytes_per_token == pytest.approx(n_bytes / len(found.valid))
    assert (found.valid == found.end_of_text).sum() == 60


def test_batches_follow_the_config(config, tmp_path):
    path = write_text(tmp_path / "stories.txt", STORIES)
    first, _ = load(config, data=path)
    same, _ = load(config, data=path)
    other, _ = load(config, data=path, seed=1)
    assert first.train_batch(3).shape == (2, 17)
    assert torch.equal(first.train_batch(3), same.train_batch(3))
    assert not torch.equal(first.train_batch(3), other.train_batch(3))
    assert all(torch.equal(a, b) for a, b in zip(first.heldout_batches(), other.heldout_batches()))
    assert len(first.heldout_batches()) == 2


def test_local_file_without_gpt2_takes_the_builtin_tokenizer(config, tmp_path):
    found, lines = load(config, data=write_text(tmp_path / "stories.txt", STORIES), tokenizer="auto")
    assert found.summary["tokenizer"] == "builtin"
    assert lines[0] == "Going on with the built-in tokenizer: the gpt2 tokenizer is gone; use --tokenizer builtin"


def test_longer_evaluation_than_validation_file_gives_fewer_batches(config, tmp_path):
    train, valid = write_text(tmp_path / "t.txt", STORIES), write_text(tmp_path / "v.txt", HELD_OUT[:4])
    found, lines = load(config, data=train, valid_data=valid, eval_batches=50)
    n = len(found.heldout_batches())
    assert 1 <= n < 50 and f"validation has room for {n} of 50 batches" in lines[1]


# errors


def file_with(content: bytes, name="stories.txt"):
    return lambda folder: ((folder / name).write_bytes(content), str(folder / name))[1]


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda folder: "no-such.txt",
            "data is 'no-such.txt', which is neither one of auto, tinystories, builtin nor an existing file",
        ),
        (lambda folder: str(folder), "which is a folder; give one .txt, .jsonl or .parquet file"),
        (file_with(b""), "which is empty (0 bytes)"),
        (file_with(b" \n<|endoftext|>\n"), "holds no stories: 1 are there, all of them empty"),
        (file_with(b"ab\xc3\xa9cd\xff"), "is not UTF-8 text: byte 0xff at offset 6; convert the file to UTF-8"),
        (file_with(b"abc\xc3"), "is not UTF-8 text: byte 0xc3 at offset 3"),
        (file_with(b"PK\x03\x00abc"), "is a binary file: zero byte at offset 3"),
        (
            file_with(b"one story, no separator"),
            "too few stories (1) to hold out one in 20; put <|endoftext|> between stories",
        ),
        (file_with(b'{"text": "a"}\n\n{"text": \n', "s.jsonl"), "line 3 is not JSON: "),
        (
            file_with(b'{"text": "a"}\n[1]\n', "s.jsonl"),
            'line 2 is not a JSON object; write {"text": "..."} on every line',
        ),
        (file_with(b'{"name": "a", "id": 1}\n', "s.jsonl"), "line 1 has no column text; its columns are name, id"),
        (
            file_with(b'{"text": "a"}\n{"text": "a", "story": "b"}\n', "s.jsonl"),
            "line 2 has text in the columns text, story; leave the one with the stories, as text",
        ),
        (
            file_with(b'{"story": "a"}\n{"content": "b"}\n', "s.jsonl"),
            "line 2 has no column story, as the records before have",
        ),
        (file_with(b'{"text": "a"}\n{"text": 5}\n', "s.jsonl"), "line 2: text is 5, must be a string"),
        (file_with(b'{"text": "a"}\n{"text": "\xff"}\n', "s.jsonl"), "is not UTF-8 text: byte 0xff at offset 24"),
        (file_with(b"not parquet", "s.parquet"), "is not a readable parquet file: "),
        (
            lambda folder: write_parquet(folder / "s.parquet", ["a"], column="name"),
            "has no column text; its columns are name, n",
        ),
        (
            lambda folder: write_parquet(folder / "s.parquet", [1, 2]),
            "the column text is of type int64, must be string",
        ),
        (lambda folder: write_parquet(folder / "s.parquet", ["a", None]), "row 1: text is null, must be a string"),
    ],
)
def test_unusable_file(config, tmp_path, make, message):
    assert message in refusal(config, data=make(tmp_path))


def test_story_without_end(config, tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "LONGEST_STORY_CHARACTERS", 50)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 16)
    assert "a story of more than 50 characters; put <|endoftext|> between stories" in refusal(
        config, data=file_with(b"word " * 100)(tmp_path)
    )


def test_validation_file_is_checked_too(config, tmp_path):
    train = write_text(tmp_path / "t.txt", STORIES)
    assert "valid_data is 'gone.txt', but there is no such file" in refusal(config, data=train, valid_data="gone.txt")


@pytest.mark.parametrize("keyword", ["auto", "tinystories", "builtin"])
def test_validation_file_needs_a_training_file(config, keyword):
    assert f"valid_data is 'v.txt', but data is '{keyword}'" in refusal(config, data=keyword, valid_data="v.txt")


def test_explicit_gpt2_that_cannot_be_had(config, tmp_path):
    for chosen in ("builtin", write_text(tmp_path / "stories.txt", STORIES)):
        assert refusal(config, data=chosen, tokenizer="gpt2") == "the gpt2 tokenizer is gone; use --tokenizer builtin"


def test_held_out_stories_shorter_than_evaluation(config, tmp_path):
    text = refusal(config, data=write_text(tmp_path / "stories.txt", STORIES[:100]), eval_batches=100)
    assert "but evaluation reads 3,400; give held-out stories with --valid-data, or lower eval_batches" in text


def test_data_shorter_than_one_batch(config, tmp_path):
    files = dict(data=write_text(tmp_path / "t.txt", STORIES[:3]), valid_data=write_text(tmp_path / "v.txt", HELD_OUT))
    assert "but one batch of 64 x 16 needs 1,040; give more stories" in refusal(
        config, **files, batch_size=64, eval_batches=1
    )


def test_cache_dir_that_is_a_file(config, tmp_path):
    (tmp_path / "file").write_text("")
    text = refusal(config, data=write_text(tmp_path / "t.txt", STORIES), cache_dir=str(tmp_path / "file"))
    assert "cannot be written to" in text and "--cache-dir" in text


# TinyStories


def test_auto_offline_goes_on_with_builtin_stories(config):
    start = time.monotonic()
    found, lines = load(config, data="auto")
    assert time.monotonic() - start < 5
    assert lines[0] == (
        "TinyStories could not be reached (no answer from https://huggingface.co): going on with the built-in stories. "
        "For real data connect to the internet, or give --data PATH."
    )
    assert found.summary["source"] == "the built-in stories" and len(lines) == 3


def test_tinystories_offline_is_an_error(config):
    assert refusal(config, data="tinystories") == (
        "TinyStories could not be had (no answer from https://huggingface.co); connect to the internet, or give --data PATH"
    )


def test_told_to_stay_offline_asks_nobody(config, monkeypatch):
    fake = FakeHub(monkeypatch)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    _, lines = load(config, data="auto")
    assert fake.n_probes == 0 and "HF_HUB_OFFLINE or HF_DATASETS_OFFLINE is set" in lines[0]


def test_other_endpoint_is_probed(config, monkeypatch):
    probed = []
    monkeypatch.setenv("HF_ENDPOINT", "https://mirror.example")
    monkeypatch.setattr(hub, "reachable", lambda url, seconds: probed.append((url, seconds)))
    load(config, data="auto")
    assert probed == [("https://mirror.example", 4.0)]


def test_tinystories_without_gpt2(config, monkeypatch):
    FakeHub(monkeypatch)
    _, lines = load(config, data="auto", tokenizer="auto")
    assert lines[0].startswith(
        "TinyStories cannot be tokenised, going on with the built-in stories: the gpt2 tokenizer is gone"
    )
    assert refusal(config, data="tinystories", tokenizer="auto").startswith("the gpt2 tokenizer is gone")
    assert refusal(config, data="auto", tokenizer="gpt2").startswith("the gpt2 tokenizer is gone")


def test_stream_then_cache_without_network(config, monkeypatch):
    fake = FakeHub(monkeypatch)
    first, lines = load(config, data="auto")
    assert "TinyStories (roneneldan/TinyStories)" in lines[0]
    fake.vanish()
    n_read = fake.n_read
    again, lines = load(config, data="tinystories")
    assert fake.n_read == n_read and len(lines) == 2
    assert torch.equal(first.train_batch(2), again.train_batch(2))


def test_batches_do_not_depend_on_longer_runs_nor_on_what_they_cached(config, monkeypatch, tmp_path):
    monkeypatch.setattr(loading, "SHARD_WINDOWS", 4)
    FakeHub(monkeypatch)
    short, _ = load(config, data="auto")
    long, _ = load(config, data="auto", steps_phase1=60, cache_dir=str(tmp_path / "other"))
    assert len(long.train) > len(short.train)
    assert all(torch.equal(short.train_batch(step), long.train_batch(step)) for step in range(4))
    after_long, lines = load(config, data="auto", cache_dir=str(tmp_path / "other"))
    assert torch.equal(short.train_batch(1), after_long.train_batch(1))
    assert all(torch.equal(a, b) for a, b in zip(short.heldout_batches(), after_long.heldout_batches()))
    assert short.bytes_per_token == after_long.bytes_per_token
    assert "this run reads the first 144 and 68 tokens" in lines[-1]


def test_longer_run_without_network_uses_what_is_cached(config, monkeypatch):
    monkeypatch.setattr(loading, "SHARD_WINDOWS", 4)
    fake = FakeHub(monkeypatch)
    first, _ = load(config, data="auto")
    fake.vanish()
    longer, lines = load(config, data="auto", steps_phase1=60)
    assert "going on with the" in lines[1] and "tokens fetched before" in lines[1]
    assert longer.summary["train"] == first.summary["train"]


def test_cache_too_short_for_a_batch_is_no_substitute(config, monkeypatch):
    fake = FakeHub(monkeypatch)
    load(config, data="auto")
    fake.vanish()
    found, _ = load(config, data="auto", batch_size=40, eval_batches=1)
    assert found.summary["source"] == "the built-in stories"


def test_lone_surrogate_in_json(config, tmp_path):
    path = tmp_path / "s.jsonl"
    path.write_text('{"text": "a \\ud800 b"}\n')
    found, _ = load(
        config, data=str(path), valid_data=write_text(tmp_path / "v.txt", HELD_OUT), batch_size=1, context_length=2
    )
    assert found.summary["train"]["n_stories"] == 1


def test_transfer_that_breaks_off(config, monkeypatch):
    FakeHub(monkeypatch, fails_after=3)
    _, lines = load(config, data="auto")
    assert "ConnectionError: connection reset" in lines[0] and "going on with the built-in stories" in lines[0]


def test_cached_copy_is_used_offline(config, monkeypatch):
    fake = FakeHub(monkeypatch)
    fake.vanish()
    monkeypatch.setattr(hub, "cached_copy_exists", lambda: True)
    monkeypatch.setattr(hub, "_load_cached_copy", fake.load)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # so that monkeypatch puts it back
    found, _ = load(config, data="tinystories")
    assert hub.os.environ["HF_HUB_OFFLINE"] == "1"
    assert "TinyStories" in found.summary["source"]


def test_a_copy_of_another_revision_has_tokens_of_its_own(config, monkeypatch, tmp_path):
    fake = FakeHub(monkeypatch)
    streamed, _ = load(config, data="tinystories")
    assert hub.REVISION in hub.TinyStoriesHub().source().fingerprint

    def of_copy(revision):
        copy = tmp_path / "datasets" / "roneneldan___tiny_stories" / "default" / "0.0.0" / revision
        copy.mkdir(parents=True)
        (copy / "dataset_info.json").touch()

    of_copy("another")
    fake.vanish()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(hub, "cached_copy_exists", lambda: True)
    monkeypatch.setattr(hub, "_load_cached_copy", lambda _, split: [{"text": text + " Indeed."} for text in STORIES])
    again, _ = load(config, data="tinystories")
    assert np.array_equal(again.train, streamed.train), "tokens of the revision that is streamed are not replaced"
    copied, _ = load(config, data="tinystories", cache_dir=str(tmp_path / "empty"))
    assert not np.array_equal(copied.train, streamed.train)
    copied_source = hub.TinyStoriesHub()
    copied_source.connect()
    assert copied_source.source().fingerprint == "roneneldan/TinyStories@another"


def test_builtin_needs_neither_network_nor_datasets(config, monkeypatch):
    fake = FakeHub(monkeypatch)
    monkeypatch.setitem(sys.modules, "datasets", None)
    found, lines = load(config, data="builtin", tokenizer="auto")
    assert fake.n_probes == 0 and found.summary["tokenizer"] == "builtin" and len(lines) == 2
