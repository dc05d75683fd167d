"""The geometry of one model. Others import it from config.py, which derives those of the three phases."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction

from settings import UserError

# Far beyond any machine; below, sizes in bytes still fit in 64 bits.
LARGEST = {
    "vocab_size": 2**20,
    "d_model": 2**20,
    "n_layers": 2**12,
    "n_heads": 2**14,
    "n_experts": 2**12,
    "context_length": 2**20,
}


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one decoder-only transformer.

    `n_experts = 0` is a dense model. `top_k` counts the experts that one token uses.
    `norm_eps` is a field because width growth by a factor that is not whole rescales it.
    `tokenizer` names what the ids mean, so that a model file can be used by itself: "builtin", "gpt2" or the
    name of a tokenizer file beside it; "" where nobody knows.

    The last three are for imported models (docs/HUGGING_FACE.md). `parallel_residual`: attention and MLP of a block
    read the same residual. `rotary_share`: the leading share of each head that RoPE turns. `tied`: the
    output matrix is the input embedding.

    Raises:
        UserError: the geometry is impossible; the text names every problem.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_experts: int = 0
    top_k: int = 2
    context_length: int = 256
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tokenizer: str = ""
    parallel_residual: bool = False
    rotary_share: float = 1.0
    tied: bool = True

    def __post_init__(self):
        problems = []
        for name, limit in LARGEST.items():
            smallest = 0 if name == "n_experts" else 1
            if not smallest <= getattr(self, name) <= limit:
                problems.append(f"{name} is {getattr(self, name)}, must be between {smallest} and {limit}")
        if not problems and self.d_model % self.n_heads:
            problems.append(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"choose n_heads among the divisors of d_model"
            )
        elif not problems and self.head_dim % 2:
            problems.append(
                f"head_dim d_model / n_heads = {self.d_model} / {self.n_heads} = {self.head_dim} is odd, "
                f"but rotary embeddings turn features in pairs; choose an even head_dim"
            )
        elif not problems and not (0 < self.rotary_share <= 1 and self.rotary_dim >= 2 and self.rotary_dim % 2 == 0):
            problems.append(
                f"rotary_share {self.rotary_share} of head_dim {self.head_dim} has to be an even number of features, "
                f"at least 2"
            )
        if self.n_experts > 0 and not 1 <= self.top_k <= self.n_experts:
            problems.append(f"top_k is {self.top_k}, must be between 1 and n_experts {self.n_experts}")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Features of each head that RoPE turns, the leading ones."""
        return int(self.head_dim * self.rotary_share)

    @property
    def d_hidden(self) -> int:
        """Hidden units of the MLP, and of every expert."""
        return 4 * self.d_model

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    def upcycled(self, n_experts: int, top_k: int) -> ModelConfig:
        """The geometry after dense→MoE: every MLP becomes `n_experts` experts of its size."""
        return dataclasses.replace(self, n_experts=n_experts, top_k=top_k)

    def grown(self, scale_factor: float, extra_layers: int) -> ModelConfig:
        """The geometry after bilateral growth: head_dim stays, so heads scale with the width.

        Raises:
            UserError: `scale_factor` gives no whole number of heads, or something shrinks.
        """
        if not math.isfinite(scale_factor) or scale_factor < 1:
            raise UserError(f"scale_factor is {scale_factor}, must be 1 or more: growth never shrinks a model")
        if extra_layers < 0:
            raise UserError(f"extra_layers is {extra_layers}, must be 0 or more: growth never removes layers")
        n_heads = Fraction(scale_factor).limit_denominator(1000) * self.n_heads
        if n_heads.denominator != 1:
            whole = [f"{h / self.n_heads:g}" for h in range(self.n_heads + 1, 2 * self.n_heads + 1)]
            raise UserError(
                f"scale_factor {scale_factor:g} turns {self.n_heads} heads into {float(n_heads):g}, "
                f"which is not a whole number; factors that work up to 2: {', '.join(whole)}"
            )
        old_width, n_heads = self.d_model, int(n_heads)
        width = n_heads * self.head_dim
        # The tiles of a residual stream whose width is no multiple of the old one hold only
        # part of the variance (see transfer/growth_maps.py); the norms' epsilon follows it.
        tiled_share = (width // old_width) * old_width / width
        return dataclasses.replace(
            self,
            d_model=width,
            n_heads=n_heads,
            n_layers=self.n_layers + extra_layers,
            norm_eps=self.norm_eps * tiled_share,
        )
