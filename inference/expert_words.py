"""Which tokens each expert takes, counted while a model reads a text.

An expert takes a token when it is among the `top_k` that the router gives it; how large its gate is does not
count. A token is named by its own text: a word, or a piece of one. Its lift is how much more often the expert
takes it than it takes any token: share of the token's occurrences / the expert's share of all tokens.

Shape letters: N tokens read, k experts of a token, E experts, V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import tiktoken
import torch
from torch import Tensor

from models import Transformer

# A token that is met less often may be an expert's by chance.
MIN_COUNT = 20
N_WORDS = 5
WIDTH = 100


class Word(NamedTuple):
    text: str
    lift: float
    taken: int  # times that the expert took it
    met: int  # times that it was there


class Expert(NamedTuple):
    """`share` is that of the layer's slots, tokens × top_k: the shares of a layer sum to 1."""

    share: float
    words: list[Word]


class TokensOfExperts:
    """Counts for each layer which expert takes which token: `taken_LEV` and `met_V`, int64 on the CPU."""

    def __init__(self, model: Transformer):
        config = model.config
        self.top_k = config.top_k
        self.taken_LEV = torch.zeros(config.n_layers, config.n_experts, config.vocab_size, dtype=torch.int64)
        self.met_V = torch.zeros(config.vocab_size, dtype=torch.int64)

    @contextlib.contextmanager
    def counting(self, model: Transformer) -> Iterator[None]:
        """Inside, all that the model reads is counted."""

        def read(_module, tokens: tuple[Tensor], _output) -> None:
            self.read_N = tokens[0].flatten()
            self.met_V += self.read_N.bincount(minlength=len(self.met_V)).cpu()

        def route(layer: int, logits_NE: Tensor) -> None:
            # The same choice from the same logits as the layer's own.
            n_experts, vocab_size = self.taken_LEV.shape[1:]
            expert_Nk = logits_NE.topk(self.top_k, dim=-1).indices
            pair_S = (expert_Nk * vocab_size + self.read_N.unsqueeze(1)).flatten()
            self.taken_LEV[layer] += pair_S.bincount(minlength=n_experts * vocab_size).view(n_experts, -1).cpu()

        hooks = [model.embedding.register_forward_hook(read)]
        for layer, block in enumerate(model.blocks):
            hook = block.mlp.router.register_forward_hook(lambda _m, _x, logits, layer=layer: route(layer, logits))
            hooks.append(hook)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def experts(self, encoding: tiktoken.Encoding) -> list[list[Expert]]:
        """Every layer's experts with their most typical words; among equals the more frequent one comes first."""
        often_V = (self.met_V >= MIN_COUNT).nonzero().squeeze(1).tolist()
        met, n_read = self.met_V.tolist(), int(self.met_V.sum())
        layers = []
        for taken_EV in self.taken_LEV:
            experts = []
            for taken_V in taken_EV:
                base_rate = int(taken_V.sum()) / n_read
                words = [
                    Word(word_of(token, encoding), taken / met[token] / base_rate, taken, met[token])
                    for token, taken in zip(often_V, taken_V[often_V].tolist())
                    if taken
                ]
                words.sort(key=lambda word: (-word.lift, -word.met))
                experts.append(Expert(base_rate / self.top_k, words[:N_WORDS]))
            layers.append(experts)
        return layers


def word_of(token: int, encoding: tiktoken.Encoding) -> str:
    """A token's text as it can be read: without its leading space, or with + where none is before it."""
    if token == encoding.eot_token:
        return "<|endoftext|>"
    text = encoding.decode([token])
    if text[:1] == " " and text.strip():
        return escaped(text[1:])
    return "+" + escaped(text)


def escaped(text: str) -> str:
    """White space and control characters as Python writes them."""
    return "".join(c if c.isprintable() and c != " " else repr(c)[1:-1] if c != " " else "␣" for c in text)


def table(layers: list[list[Expert]]) -> str:
    """One line an expert, no wider than WIDTH; words that would not fit are left out."""
    lines = []
    for number, experts in enumerate(layers):
        lines.append(f"layer {number}")
        for expert, (share, words) in enumerate(experts):
            line = f"  expert {expert:<3}{share:>7.1%}  "
            for word in words:
                part = f" {word.text} ×{word.lift:.1f}"
                if len(line + part) > WIDTH:
                    break
                line += part + " "
            lines.append(line.rstrip())
    return "\n".join(lines)
