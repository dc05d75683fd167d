"""The stories that a run asks for, as tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import tiktoken
import torch

from config import TrainingConfig, UserError
from data import batches
from data.hub import HubUnavailable, TinyStoriesHub
from data.sources import StorySource, builtin_source, file_source, is_there
from data.token_cache import (
    CacheUnusable,
    TokenisedStories,
    TokenNeed,
    cache_folder,
    load_or_build,
    load_tokens,
)
from data.tokenizer import TokenizerUnavailable, find_tokenizer, load_tokenizer, tokenizer_name
from data.tokenizer_file import TokenizerFile, notes_of

KEYWORDS = ("auto", "tinystories", "builtin")
# A stream is read by whole shards, each shuffled by itself: see `batches.train_batch`.
SHARD_WINDOWS = 512


@dataclass(frozen=True)
class StoryData:
    """The stories of a run.

    `train`, `valid`: token ids (`token_dtype`), shape (n_tokens,), memory-mapped.
    `bytes_per_token`: UTF-8 bytes of the validation stories per validation token, where
    end-of-text counts as a token of no bytes: nats / ln 2 / bytes_per_token = bits per byte.
    `shard`: windows shuffled together where the tokens are the beginning of a stream.
    `heldout_batch`: the held-out windows are eval_batches of so many, whatever the batch size is by now.
    `summary`: source, tokenizer, counts, overlap and checksums, for the run's history.
    """

    train: np.ndarray
    valid: np.ndarray
    tokenizer: tiktoken.Encoding | TokenizerFile
    end_of_text: int
    bytes_per_token: float
    summary: dict
    config: TrainingConfig
    shard: int | None
    heldout_batch: int

    def train_batch(self, step: int) -> torch.LongTensor:
        """int64 (batch_size, context_length + 1); depends on the config's seed and `step` alone."""
        c = self.config
        return batches.train_batch(self.train, c.seed, step, c.batch_size, c.context_length, self.shard)

    def heldout_batches(self) -> list[torch.LongTensor]:
        """Up to eval_batches × heldout_batch windows, always the same: int64 (≤ batch_size, context_length + 1)."""
        c = self.config
        found = batches.heldout_batches(self.valid, c.eval_batches, self.heldout_batch, c.context_length)
        return list(torch.cat(found).split(c.batch_size))


def load_data(
    config: TrainingConfig, say: Callable[[str], None] = print, heldout_batch: int | None = None
) -> StoryData:
    """Finds, cleans and tokenises the stories that `config` asks for.

    Tells through `say` where they come from and how many there are.

    Args:
        heldout_batch: the batch size with which the run was started, which decides what is held-out; None for a new one.
    Raises:
        UserError: the data or the tokenizer cannot be had, or is too small for a batch.
    """
    heldout_batch = heldout_batch or config.batch_size
    if config.data in KEYWORDS and config.valid_data:
        raise UserError(
            f"valid_data is {config.valid_data!r}, but data is {config.data!r}, which brings its own held-out "
            f"stories; leave --valid-data out, or give --data PATH"
        )
    if config.data in ("auto", "tinystories"):
        try:
            return _tinystories(config, heldout_batch, say)
        except HubUnavailable as error:
            if config.data == "tinystories":
                raise UserError(
                    f"TinyStories could not be had ({error}); connect to the internet, or give --data PATH"
                ) from error
            say(
                f"TinyStories could not be reached ({error}): going on with the built-in stories. "
                f"For real data connect to the internet, or give --data PATH."
            )
        except TokenizerUnavailable as error:
            if config.data == "tinystories" or config.tokenizer == "gpt2":
                raise
            say(f"TinyStories cannot be tokenised, going on with the built-in stories: {error}")
        return _builtin(config, heldout_batch, say)
    if config.data == "builtin":
        return _builtin(config, heldout_batch, say)
    return _local_files(config, heldout_batch, say)


def _given_tokenizer(config: TrainingConfig, auto: str) -> str:
    """Its name or path; `auto` is what "auto" means."""
    return find_tokenizer(auto if config.tokenizer == "auto" else config.tokenizer, config.checkpoint_dir)


def _builtin(config: TrainingConfig, heldout_batch: int, say) -> StoryData:
    given = _given_tokenizer(config, "builtin")
    name, encoding, source = tokenizer_name(given), load_tokenizer(given), builtin_source()
    tokens = load_or_build(Path(config.cache_dir), source, name, encoding, None, say)
    return _story_data(config, heldout_batch, source, name, encoding, tokens, None, say)


def _local_files(config: TrainingConfig, heldout_batch: int, say) -> StoryData:
    if not is_there(config.data):
        raise UserError(f"data is {config.data!r}, which is neither one of {', '.join(KEYWORDS)} nor an existing file")
    source = file_source(config.data, config.valid_data)
    given = _given_tokenizer(config, "gpt2")
    try:
        encoding = load_tokenizer(given)
    except TokenizerUnavailable as error:
        if config.tokenizer == "gpt2":
            raise
        say(f"Going on with the built-in tokenizer: {error}")
        given = "builtin"
        encoding = load_tokenizer(given)
    name = tokenizer_name(given)
    tokens = load_or_build(Path(config.cache_dir), source, name, encoding, None, say)
    need = _need(config, heldout_batch)
    if source.valid is None and len(tokens.valid) < need.valid:
        raise UserError(
            f"holding out one story in twenty of {source.description} leaves {len(tokens.valid):,} tokens, but "
            f"evaluation reads {need.valid:,}; give held-out stories with --valid-data, or lower "
            f"eval_batches, batch_size or context_length"
        )
    return _story_data(config, heldout_batch, source, name, encoding, tokens, None, say)


def _tinystories(config: TrainingConfig, heldout_batch: int, say) -> StoryData:
    """Raises HubUnavailable, or TokenizerUnavailable."""
    given = _given_tokenizer(config, "gpt2")
    name = tokenizer_name(given)
    cache_dir = Path(config.cache_dir)
    need = _need(config, heldout_batch)
    hub = TinyStoriesHub()
    source = hub.source()
    folder = cache_folder(cache_dir, source, name)
    # Where nothing is cached the hub comes first: two silent hosts in turn would take twice
    # as long, and without the stories there is no use for the tokenizer.
    if not folder.exists():
        hub.connect()
        source = hub.source()  # which may be a copy of another revision
        folder = cache_folder(cache_dir, source, name)
    encoding = load_tokenizer(given)
    try:
        tokens = load_or_build(cache_dir, source, name, encoding, need, say)
    except HubUnavailable as error:
        tokens = _fewer_tokens(folder, encoding, config, heldout_batch)
        if tokens is None:
            raise
        # Real stories, some of them read again, serve the user better than the built-in ones.
        say(
            f"TinyStories could not be reached ({error}): going on with the {len(tokens.train):,} tokens fetched before."
        )
    return _story_data(config, heldout_batch, source, name, encoding, tokens, need, say)


def _fewer_tokens(
    folder: Path, encoding: tiktoken.Encoding, config: TrainingConfig, heldout_batch: int
) -> TokenisedStories | None:
    """An undamaged cache that has at least one batch of each kind, or None."""
    try:
        one_batch = TokenNeed(
            train=(config.batch_size + 1) * config.context_length,
            valid=heldout_batch * (config.context_length + 1),
        )
        return load_tokens(folder, encoding, one_batch)
    except CacheUnusable:
        return None


def _need(config: TrainingConfig, heldout_batch: int) -> TokenNeed:
    n_shards = -(-max(config.total_steps, 1) * config.batch_size // SHARD_WINDOWS)
    return TokenNeed(
        train=(n_shards * SHARD_WINDOWS + 1) * config.context_length,
        valid=config.eval_batches * heldout_batch * (config.context_length + 1),
    )


def _story_data(
    config: TrainingConfig,
    heldout_batch: int,
    source: StorySource,
    tokenizer_name: str,
    encoding: tiktoken.Encoding,
    tokens: TokenisedStories,
    need: TokenNeed | None,
    say: Callable[[str], None],
) -> StoryData:
    # A cache may hold more than this run needs, from a longer run before. Reading the same
    # tokens whatever the cache's history keeps batches a function of the config alone.
    train = tokens.train[: need.train] if need else tokens.train
    valid = tokens.valid[: need.valid] if need else tokens.valid
    end_of_text = encoding.eot_token
    summary = {
        "source": source.description,
        "tokenizer": tokenizer_name,
        "train_tokens_read": len(train),
        "valid_tokens_read": len(valid),
        "train": asdict(tokens.train_counts),
        "valid": asdict(tokens.valid_counts),
        "overlap": tokens.overlap,
    }
    bytes_per_token = mean_bytes_per_token(valid, encoding, end_of_text)
    if not bytes_per_token > 0:
        raise UserError(
            f"of the validation stories of {source.description} the tokenizer {tokenizer_name} makes no text"
        )
    shard = SHARD_WINDOWS if need else None
    data = StoryData(train, valid, encoding, end_of_text, bytes_per_token, summary, config, shard, heldout_batch)
    # Too few tokens for a batch are an error of now, not of the first step.
    data.train_batch(0)
    n_heldout = sum(map(len, data.heldout_batches()))
    say(f"Stories: {source.description}; tokenizer {tokenizer_name}; tokens in {tokens.folder}")
    for note in notes_of(encoding):
        say(f"The tokenizer {tokenizer_name}: {note}.")
    t, v = tokens.train_counts, tokens.valid_counts
    counts = (
        f"{t.n_stories:,} training stories ({t.n_tokens:,} tokens), {v.n_stories:,} validation stories "
        f"({v.n_tokens:,} tokens); {t.repaired + v.repaired:,} repaired, {t.dropped + v.dropped:,} empty ones "
        f"dropped, {tokens.overlap:,} validation stories also in training"
    )
    if len(train) < t.n_tokens or len(valid) < v.n_tokens:
        counts += f"; this run reads the first {len(train):,} and {len(valid):,} tokens"
    if n_heldout < config.eval_batches * heldout_batch:
        counts += f"; validation has room for {n_heldout // heldout_batch} of {config.eval_batches} batches"
    say(counts)
    return data


def mean_bytes_per_token(tokens: np.ndarray, encoding: tiktoken.Encoding, end_of_text: int) -> float:
    """UTF-8 bytes a token of the text that a model is asked to predict, where end-of-text is a token of no bytes.

    Not of that text is the space that some tokenizers put before each.
    """
    n_bytes_of_token = np.array([len(encoding.decode_single_token_bytes(t)) for t in range(encoding.n_vocab)])
    n_bytes_of_token[end_of_text] = 0
    chunk = 1 << 20
    n_bytes = sum(int(n_bytes_of_token[tokens[start : start + chunk]].sum()) for start in range(0, len(tokens), chunk))
    n_texts = np.count_nonzero(tokens == end_of_text) + (tokens[-1] != end_of_text)
    return (n_bytes - n_texts * len(getattr(encoding, "prefix", b""))) / len(tokens)
