"""Both tokenizers: the shipped one is what its script makes, gpt2 never hangs."""

import hashlib
import os
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiktoken

from data import network, tokenizer
from data.builtin_stories import builtin_split
from data.tokenizer import (
    BUILTIN_RANKS_PATH,
    END_OF_TEXT,
    GPT2_FILES,
    TokenizerUnavailable,
    load_tokenizer,
    read_ranks,
    write_ranks,
)
from data.train_tokenizer import N_RANKS, train_bpe


@pytest.fixture(scope="module")
def split() -> tuple[list[str], list[str]]:
    return builtin_split()


@pytest.fixture(scope="module")
def builtin() -> tiktoken.Encoding:
    return load_tokenizer("builtin")


# --- the shipped ranks


def test_shipped_ranks_are_what_the_script_trains(split, tmp_path):
    train, _ = split
    write_ranks(train_bpe(train, N_RANKS), tmp_path / "trained")
    assert (tmp_path / "trained").read_bytes() == BUILTIN_RANKS_PATH.read_bytes()


def test_shipped_ranks_are_4096_with_every_byte():
    ranks = read_ranks(BUILTIN_RANKS_PATH)
    assert sorted(ranks.values()) == list(range(4096))
    assert all(ranks[bytes([byte])] == byte for byte in range(256))


def test_trainer_merges_the_most_frequent_pair_and_breaks_ties_by_bytes():
    # Pairs by hand: "ab" 3 times, then "abc" and "xy" 2 times each, "abc" first in byte order.
    ranks = train_bpe(["abc", "abc", "abd", "xy", "xy"], 259)
    assert list(ranks)[256:] == [b"ab", b"abc", b"xy"]


def test_trainer_reports_too_few_words():
    with pytest.raises(ValueError, match="only 257 ranks, 300 wanted"):
        train_bpe(["ab"], 300)


def test_merges_follow_the_training(builtin):
    # A word of the stories is one token when its last merge came in, whichever order built it.
    assert len(builtin.encode_ordinary("Once upon a time, there was a little girl")) == 10


# --- encoding


def test_ids_are_4096_ranks_and_the_end_of_text(builtin):
    assert builtin.n_vocab == 4097
    assert builtin.encode(END_OF_TEXT, allowed_special={END_OF_TEXT}) == [4096]
    assert 4096 not in builtin.encode_ordinary(f"a{END_OF_TEXT}b")


def test_stories_survive_the_round_trip(builtin, split):
    _, valid = split
    for story in valid:
        assert builtin.decode(builtin.encode_ordinary(story)) == story


@pytest.mark.parametrize(
    "text", ["", " ", "\n\n \t", "naïve café", "日本語", "🦊🐻", "\u0000\x7f", "I'll  don't 'S", END_OF_TEXT]
)
def test_any_text_survives_the_round_trip(builtin, text):
    assert builtin.decode(builtin.encode_ordinary(text)) == text


def test_every_byte_has_its_own_token(builtin):
    assert [builtin.decode_single_token_bytes(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]


def test_random_unicode_survives_the_round_trip(builtin):
    rng = random.Random(0)
    for _ in range(200):
        points = (rng.randrange(0x110000) for _ in range(50))
        text = "".join(chr(point) for point in points if not 0xD800 <= point < 0xE000)
        assert builtin.decode(builtin.encode_ordinary(text)) == text


def test_a_token_holds_more_than_three_characters_of_unseen_stories(builtin, split):
    _, valid = split
    n_tokens = sum(map(len, builtin.encode_ordinary_batch(valid)))
    assert sum(map(len, valid)) / n_tokens > 3


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'gpt9'"):
        load_tokenizer("gpt9")


# --- gpt2: cached, offline, stalled


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty tiktoken cache."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def download(monkeypatch):
    """Stands for `tiktoken.get_encoding`; `download.result` is called in its place."""

    class Download:
        calls = 0
        result = staticmethod(lambda: "the gpt2 encoding")

        def __call__(self, name):
            assert name == "gpt2"
            self.calls += 1
            return self.result()

    stand_in = Download()
    monkeypatch.setattr(tiktoken, "get_encoding", stand_in)
    return stand_in


@pytest.fixture
def cached_files(cache, monkeypatch):
    """A cache with both files, whose hashes are taken for the right ones."""
    contents = {url: f"contents of {url}".encode() for url in GPT2_FILES}
    monkeypatch.setattr(
        tokenizer, "GPT2_FILES", {url: hashlib.sha256(data).hexdigest() for url, data in contents.items()}
    )
    paths = [cache / hashlib.sha1(url.encode()).hexdigest() for url in contents]
    for path, data in zip(paths, contents.values()):
        path.write_bytes(data)
    return paths


def forbid_network(monkeypatch):
    monkeypatch.setattr(network, "reachable", lambda url, seconds: pytest.fail("the network was probed"))


def test_gpt2_files_are_those_that_tiktoken_asks_for(monkeypatch):
    asked = {}

    def record(vocab_bpe_file, encoder_json_file, vocab_bpe_hash, encoder_json_hash):
        asked.update({vocab_bpe_file: vocab_bpe_hash, encoder_json_file: encoder_json_hash})

    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "data_gym_to_mergeable_bpe_ranks", record)
    openai_public.gpt2()
    assert asked == GPT2_FILES


def test_cached_gpt2_is_used_without_the_network(cached_files, download, monkeypatch):
    forbid_network(monkeypatch)
    assert load_tokenizer("gpt2") == "the gpt2 encoding"


def test_gpt2_is_found_in_the_older_cache_variable(cached_files, download, monkeypatch):
    forbid_network(monkeypatch)
    monkeypatch.setenv("DATA_GYM_CACHE_DIR", os.environ["TIKTOKEN_CACHE_DIR"])
    monkeypatch.delenv("TIKTOKEN_CACHE_DIR")
    assert load_tokenizer("gpt2") == "the gpt2 encoding"


def test_gpt2_is_downloaded_where_the_network_answers(cache, download, monkeypatch):
    monkeypatch.setattr(network, "reachable", lambda url, seconds: True)
    assert load_tokenizer("gpt2") == "the gpt2 encoding"


@pytest.mark.parametrize("harm", ["delete", "damage"])
def test_gpt2_without_both_good_files_is_unavailable_offline(cached_files, download, monkeypatch, harm):
    monkeypatch.setattr(network, "reachable", lambda url, seconds: False)
    if harm == "delete":
        cached_files[1].unlink()
    else:
        cached_files[1].write_bytes(b"damaged")
    with pytest.raises(TokenizerUnavailable) as raised:
        load_tokenizer("gpt2")
    assert download.calls == 0
    message = str(raised.value)
    assert "\n" not in message and "cannot be reached" in message and "TIKTOKEN_CACHE_DIR" in message
    assert all(path.name in message for path in cached_files)


def test_gpt2_offline_is_given_up_within_five_seconds(cache, download, monkeypatch):
    # A name look-up that hangs: no time limit of a socket reaches it.
    released = threading.Event()
    monkeypatch.setattr(network.requests, "head", lambda *args, **kwargs: released.wait(30))
    start = time.monotonic()
    with pytest.raises(TokenizerUnavailable):
        load_tokenizer("gpt2")
    released.set()
    assert time.monotonic() - start < 5


def test_a_stalled_download_is_given_up(cache, download, monkeypatch):
    released = threading.Event()
    monkeypatch.setattr(network, "reachable", lambda url, seconds: True)
    monkeypatch.setattr(tokenizer, "DOWNLOAD_SECONDS", 0.2)
    download.result = lambda: released.wait(30)
    with pytest.raises(TokenizerUnavailable, match="did not arrive within 0.2 s"):
        load_tokenizer("gpt2")
    released.set()


@pytest.mark.parametrize("error", [ConnectionError("broken\noff"), ValueError("Hash mismatch for data")])
def test_a_failed_download_is_one_clear_line(cache, download, monkeypatch, error):
    def fail():
        raise error

    monkeypatch.setattr(network, "reachable", lambda url, seconds: True)
    download.result = fail
    with pytest.raises(TokenizerUnavailable) as raised:
        load_tokenizer("gpt2")
    assert str(error).split()[0] in str(raised.value) and "\n" not in str(raised.value)


# --- the bounded network calls


class ErrorPage(BaseHTTPRequestHandler):
    def do_HEAD(self):
        self.send_response(503)
        self.end_headers()

    def log_message(self, *args):
        pass


@pytest.fixture
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_an_error_status_counts_as_reachable(no_proxy):
    server = HTTPServer(("127.0.0.1", 0), ErrorPage)
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert network.reachable(f"http://127.0.0.1:{server.server_port}/", 5)
    server.server_close()


def test_a_refused_connection_is_not_reachable(no_proxy):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        assert not network.reachable(f"http://127.0.0.1:{unused.getsockname()[1]}/", 5)


def test_silence_is_not_reachable_and_takes_no_longer_than_allowed(no_proxy):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        start = time.monotonic()
        assert not network.reachable(f"http://127.0.0.1:{silent.getsockname()[1]}/", 0.3)
        assert time.monotonic() - start < 2


def test_a_failed_name_look_up_and_a_malformed_address_are_not_reachable(monkeypatch):
    def fail(*args, **kwargs):
        raise socket.gaierror("name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setenv("NO_PROXY", "*")
    assert not network.reachable("http://no.such.host.invalid/", 5)
    assert not network.reachable("no address at all", 5)


def test_within_hands_over_results_and_errors():
    assert network.within(5, lambda: 42) == 42
    with pytest.raises(KeyError):
        network.within(5, lambda: {}["absent"])
    with pytest.raises(TimeoutError, match="0.05 s"):
        network.within(0.05, threading.Event().wait)
