"""All tokens of a text that a model is measured on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import tiktoken
from tqdm import tqdm

from config import UserError
from data.hub import HubUnavailable, TinyStoriesHub
from data.sources import StorySource, builtin_source, file_source, is_there
from data.token_cache import cleaned_and_encoded, token_dtype


class WholeText(NamedTuple):
    """`tokens`: `token_dtype` (n_tokens,), every story followed by one end-of-text. `is_whole`: the text has no more."""

    description: str
    tokens: np.ndarray
    n_stories: int
    is_whole: bool


def read_whole_text(data: str, encoding: tiktoken.Encoding, max_tokens: int | None = None) -> WholeText:
    """The held-out stories of "builtin" or "tinystories", or all that a file holds; cleaned as for training.

    Nothing is cached: to tokenise a text takes less time than any model takes to read it.

    Raises:
        UserError: the text cannot be had, holds no stories, or is no UTF-8.
    """
    blocks, n_tokens, n_stories, is_whole = [], 0, 0, True
    try:
        source, stories = _source_of(data)
        with tqdm(desc="tokenising", unit=" stories", disable=None, leave=False) as progress:
            for story, _, ids in cleaned_and_encoded(stories(), encoding):
                if max_tokens is not None and n_tokens >= max_tokens:
                    is_whole = False
                    break
                progress.update()
                if story:
                    blocks.append(np.array([*ids, encoding.eot_token], dtype=token_dtype(encoding.n_vocab)))
                    n_tokens += len(blocks[-1])
                    n_stories += 1
    except HubUnavailable as error:
        raise UserError(
            f"TinyStories could not be had ({error}); connect to the internet, or give --data PATH"
        ) from error
    if not blocks:
        raise UserError(f"{source.description} holds no stories")
    tokens = np.concatenate(blocks)[:max_tokens]
    return WholeText(source.description, tokens, n_stories, is_whole and len(tokens) == n_tokens)


def _source_of(data: str) -> tuple[StorySource, Callable[[], Iterator[str]]]:
    """Raises UserError, or HubUnavailable."""
    if data == "builtin":
        source = builtin_source()
        return source, source.valid
    if data == "tinystories":
        hub = TinyStoriesHub()
        hub.connect()
        source = hub.source()
        return source, source.valid
    if not is_there(data):
        raise UserError(f"--data is {data!r}, which is neither builtin nor tinystories nor an existing file")
    source = file_source(data, "")
    return source, source.train
