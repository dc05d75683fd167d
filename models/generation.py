"""Continuing texts token by token, several at once."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from config import ModelConfig
from models.sampling import GREEDY, Sampling
from models.transformer import Transformer


def room_for_tokens(config: ModelConfig, prompt: list[int]) -> int:
    """How many tokens may follow a prompt: the model reads `context_length` of them, and the last is not read again."""
    return config.context_length + 1 - len(prompt)


@torch.no_grad()
def stream_tokens(
    model: Transformer,
    prompts: list[list[int]],
    n_tokens: int,
    end_of_text: int,
    sampling: Sampling = GREEDY,
    seeds: list[int] | None = None,
) -> Iterator[tuple[int, int | None]]:
    """Continues all prompts at the same time: yields (number of the prompt, token), and (number, None) at its end.

    A continuation ends before `end_of_text`, after `n_tokens`, or where the model has no position left: a window
    that slides over longer texts would move every position, and with it everything that the cache holds.

    Args:
        prompts: token ids, at least one and at most `context_length` each.
        n_tokens: at least 1.
        seeds: one a prompt; it alone decides what is drawn for that prompt. Without them all are 0.
    Raises:
        ValueError: a prompt is empty or too long.
        UserError: the logits are no numbers.
    """
    lengths = [len(prompt) for prompt in prompts]
    context_length = model.config.context_length
    if not lengths or not 1 <= min(lengths) <= max(lengths) <= context_length:
        raise ValueError(f"prompts of {lengths} tokens, but each must have between 1 and {context_length}")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds or [0] * len(prompts)]
    left = [min(n_tokens, room_for_tokens(model.config, prompt)) for prompt in prompts]
    cache = model.new_cache(len(prompts), min(max(lengths) + n_tokens, context_length))
    hidden_BTD, _ = model.hidden(padded(prompts, model.device), cache)
    cache.cut(lengths)
    last_BD = hidden_BTD[torch.arange(len(prompts)), torch.tensor(lengths) - 1]
    numbers = list(range(len(prompts)))
    while True:
        tokens = sampling.choose(model.unembed(last_BD), generators)
        left = [n - 1 for n in left]
        rows = []
        for row, (number, token) in enumerate(zip(numbers, tokens)):
            if token != end_of_text:
                yield number, token
            if token != end_of_text and left[row]:
                rows.append(row)
            else:
                yield number, None
        if not rows:
            return
        if len(rows) < len(tokens):
            cache.keep_rows(rows)
            numbers, tokens, left, generators = (
                [each[r] for r in rows] for each in (numbers, tokens, left, generators)
            )
        hidden_BTD, _ = model.hidden(torch.tensor(tokens, device=model.device).unsqueeze(1), cache)
        last_BD = hidden_BTD[:, -1]


def continuations(
    model: Transformer,
    prompts: list[list[int]],
    n_tokens: int,
    end_of_text: int,
    sampling: Sampling = GREEDY,
    seeds: list[int] | None = None,
) -> list[list[int]]:
    """The tokens of `stream_tokens`, one list a prompt, without the prompt."""
    found: list[list[int]] = [[] for _ in prompts]
    for number, token in stream_tokens(model, prompts, n_tokens, end_of_text, sampling, seeds):
        if token is not None:
            found[number].append(token)
    return found


def padded(prompts: list[list[int]], device: torch.device) -> Tensor:
    """int64 (B, T), shorter prompts followed by zeros, which nothing before them sees."""
    longest = max(map(len, prompts))
    return torch.tensor([prompt + [0] * (longest - len(prompt)) for prompt in prompts], device=device)
