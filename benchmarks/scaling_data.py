"""The data path beside its limits: tokenising at tiktoken's own rate, memory that stays, a loader nobody waits for."""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import trainees
from benchmarks.measuring import VOCAB_SIZE, in_fresh_process, peak_bytes, time_interleaved
from config import PRESETS, UserError
from data import END_OF_TEXT, TokenizerUnavailable, load_tokenizer
from data.batches import train_batch
from data.sources import builtin_source, file_source, read_stories
from data.token_cache import load_or_build

CPU = torch.device("cpu")
# The first is tokenised for the rate, too.
CORPUS_BYTES = (4_000_000, 16_000_000, 64_000_000)
LOADED_STEPS = 1000


def measure_data(path: Path | None) -> dict:
    """Figures of tokenising and loading the stories in `path`, or of the built-in ones.

    Raises:
        UserError: the stories cannot be read, or are too few.
    """
    name = tokenizer_name()
    with tempfile.TemporaryDirectory() as folder:
        corpora = [write_corpus(Path(folder, f"{n_bytes}.txt"), stories(path), n_bytes) for n_bytes in CORPUS_BYTES]
        peaks = [in_fresh_process(tokenising_bytes, corpus, name) for corpus in corpora]
        return {
            "tokenizer": name,
            **tokenising_rates(corpora[0], name),
            "corpus bytes": CORPUS_BYTES,
            "bytes that tokenising adds to the process": peaks,
            **loader_figures(),
        }


def tokenizer_name() -> str:
    try:
        load_tokenizer("gpt2")
        return "gpt2"
    except TokenizerUnavailable:
        return "builtin"


def stories(path: Path | None) -> Iterator[str]:
    """Stories without end, no two of them equal: where they are used up they come again, with a number."""
    read = builtin_source().train if path is None else lambda: read_stories(path)
    yield from read()
    for number in itertools.count(2):
        for story in read():
            yield f"{story} {number}"


def write_corpus(path: Path, source: Iterator[str], n_bytes: int) -> Path:
    """About `n_bytes` of stories in a text file."""
    with path.open("w", encoding="utf-8") as file:
        written = 0
        for story in source:
            written += file.write(f"{story}\n{END_OF_TEXT}\n")
            if written >= n_bytes:
                return path
    raise UserError("there is not one story in the data")


def tokenise(corpus: Path, name: str) -> None:
    """As a run does it: reads, cleans, tokenises, writes, and verifies what was written."""
    with tempfile.TemporaryDirectory() as cache:
        source = file_source(str(corpus), "")
        load_or_build(Path(cache), source, name, load_tokenizer(name), None, lambda _: None)


def tokenising_bytes(corpus: Path, name: str) -> int:
    """What tokenising adds to the peak memory of this process."""
    load_tokenizer(name).encode_ordinary("Once upon a time")
    before = peak_bytes(CPU)
    tokenise(corpus, name)
    return peak_bytes(CPU) - before


def tokenising_rates(corpus: Path, name: str) -> dict[str, float]:
    """MB/s of our whole path and of tiktoken alone on the same stories, already in memory and in one call."""
    texts = list(read_stories(corpus))
    encoding = load_tokenizer(name)
    contenders = {"ours": lambda: tokenise(corpus, name), "bare": lambda: encoding.encode_ordinary_batch(texts)}
    timings = time_interleaved(contenders, CPU)
    megabytes = corpus.stat().st_size / 1e6
    return {
        "tokenising MB/s": megabytes / timings["ours"].seconds,
        "tiktoken MB/s": megabytes / timings["bare"].seconds,
        "tokenising / tiktoken": timings["bare"].seconds / timings["ours"].seconds,
    }


def loader_figures() -> dict[str, float]:
    """Milliseconds a batch, the shuffling of the epoch included, and their share of the cheapest step we have."""
    settings = PRESETS["tiny"]
    batch, context = settings.batch_size, settings.context_length
    tokens = torch.arange(batch * context * LOADED_STEPS + 2 * context).numpy().astype("<u2")
    start = time.perf_counter()
    for step in range(LOADED_STEPS):
        tokens_BT = train_batch(tokens, 0, step, batch, context)
    loading = (time.perf_counter() - start) / LOADED_STEPS
    geometry = settings.phase_geometries(VOCAB_SIZE["tiny"])[0]
    tokens_BT %= geometry.vocab_size
    trainee = trainees.ours(trainees.our_model(geometry), tokens_BT, settings, torch.float32)
    step_seconds = time_interleaved({"step": trainee}, CPU)["step"].seconds
    return {"loader ms a batch": 1e3 * loading, "loader / step of the tiny preset": loading / step_seconds}
