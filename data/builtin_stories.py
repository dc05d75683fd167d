"""Stories of our own, for training where TinyStories cannot be had.

The same numbers give the same stories on every machine and Python version: all choices
come from `random.Random.random`, whose stream Python promises to keep.
"""

from __future__ import annotations

import random

from data.builtin_plots import PLOTS, Teller

# Every twentieth story is held out.
VALID_STRIDE = 20


def builtin_stories(n_stories: int = 24_000, seed: int = 0) -> list[str]:
    """The first `n_stories` distinct stories of `seed`.

    Raises:
        ValueError: `n_stories` is negative, or the plots do not yield so many stories.
    """
    if n_stories < 0:
        raise ValueError(f"n_stories is {n_stories}, must be 0 or more")
    rng = random.Random(seed)
    stories: dict[str, None] = {}  # in the order of telling, each once
    attempts = 0
    while len(stories) < n_stories:
        # Repeats are rare, so this many mean that the plots are told out.
        if attempts > 2 * n_stories + 1_000:
            raise ValueError(f"only {len(stories)} distinct stories in {attempts} attempts, {n_stories} wanted")
        teller = Teller(rng)
        tell_plot = teller.pick(PLOTS)
        tell_plot(teller)
        stories[teller.text()] = None
        attempts += 1
    return list(stories)


def builtin_split(n_stories: int = 24_000, seed: int = 0) -> tuple[list[str], list[str]]:
    """Training and held-out stories; no text is in both.

    Raises:
        ValueError: as `builtin_stories`.
    """
    stories = builtin_stories(n_stories, seed)
    train = [story for index, story in enumerate(stories) if index % VALID_STRIDE]
    return train, stories[::VALID_STRIDE]
