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
LARGEST_RATIO = 64
ARCHITECTURES = ("neox", "llama")


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one decoder-only transformer.

    `n_experts = 0` is a dense model. `top_k` counts the experts that one token uses.
    `norm_eps` is a field because width growth by a factor that is not whole rescales it.
    `tokenizer` names what the ids mean, so that a model file can be used by itself: "builtin", "gpt2" or the
    name of a tokenizer file beside it; "" where nobody knows.

    `architecture`: "neox" has LayerNorm, GELU and biases; "llama" RMSNorm, SwiGLU and no biases.
    `queries_per_kv`: query heads that share one key and value head. `hidden_ratio`: hidden units of the MLP, and of every
    expert, in multiples of d_model. Both are ratios because growth keeps them.

    The last four are for imported models (docs/HUGGING_FACE.md). `parallel_residual`: attention and MLP of a block
    read the same residual; with `rotary_share`, the leading share of each head that RoPE turns, it is NeoX's alone.
    `tied`: the output matrix is the input embedding. `rope_scaling`: Llama 3's four numbers (models/attention.py), or
    none.

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
    architecture: str = "neox"
    queries_per_kv: int = 1
    hidden_ratio: float = 4.0
    rope_scaling: tuple[float, ...] = ()

    def __post_init__(self):
        problems = []
        # A file may hold it as a list, which has no hash.
        object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))
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
        elif not problems and (self.queries_per_kv < 1 or self.n_heads % self.queries_per_kv):
            problems.append(
                f"n_heads {self.n_heads} is no multiple of queries_per_kv {self.queries_per_kv}, "
                f"the query heads that share a key-value head"
            )
        elif not problems and not (0 < self.hidden_ratio <= LARGEST_RATIO and self.d_hidden >= 1):
            problems.append(
                f"hidden_ratio is {self.hidden_ratio}, must give 1 hidden unit or more, and at most {LARGEST_RATIO} d_model"
            )
        if self.rope_scaling and not (
            len(self.rope_scaling) == 4 and min(self.rope_scaling) > 0 and self.rope_scaling[1] < self.rope_scaling[2]
        ):
            problems.append(
                f"rope_scaling is {self.rope_scaling}, must be four numbers above 0, the second below the third"
            )
        if self.n_experts > 0 and not 1 <= self.top_k <= self.n_experts:
            problems.append(f"top_k is {self.top_k}, must be between 1 and n_experts {self.n_experts}")
        if self.architecture not in ARCHITECTURES:
            problems.append(f"architecture is {self.architecture!r}, must be one of {', '.join(ARCHITECTURES)}")
        if self.is_llama and (self.parallel_residual or self.rotary_share != 1):
            problems.append("parallel_residual and rotary_share are NeoX's, but architecture is 'llama'")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def is_llama(self) -> bool:
        return self.architecture == "llama"

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads // self.queries_per_kv

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
        return round(self.hidden_ratio * self.d_model)

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    def upcycled(self, n_experts: int, top_k: int) -> ModelConfig:
        """The geometry after dense→MoE: every MLP becomes `n_experts` experts of its size."""
        return dataclasses.replace(self, n_experts=n_experts, top_k=top_k)

    def grown(self, scale_factor: float, extra_layers: int, is_cloned: bool = True) -> ModelConfig:
        """The geometry after bilateral growth: head_dim and queries_per_kv stay, so key-value heads, and with them
        heads, scale with the width.

        Args:
            is_cloned: see `GrowthMaps.between`.

        Raises:
            UserError: `scale_factor` gives no whole number of (key-value) heads, or something shrinks.
        """
        if not math.isfinite(scale_factor) or scale_factor < 1:
            raise UserError(f"scale_factor is {scale_factor}, must be 1 or more: growth never shrinks a model")
        if extra_layers < 0:
            raise UserError(f"extra_layers is {extra_layers}, must be 0 or more: growth never removes layers")
        old_width, n_old = self.d_model, self.n_kv_heads
        n_new = Fraction(scale_factor).limit_denominator(1000) * n_old
        if n_new.denominator != 1:
            whole = [f"{n / n_old:g}" for n in range(n_old + 1, 2 * n_old + 1)]
            kind = "heads" if self.queries_per_kv == 1 else "key-value heads"
            raise UserError(
                f"scale_factor {scale_factor:g} turns {n_old} {kind} into {float(n_new):g}, "
                f"which is not a whole number; factors that work up to 2: {', '.join(whole)}"
            )
        n_heads = int(n_new) * self.queries_per_kv
        width = n_heads * self.head_dim
        # The tiles of a residual stream whose width is no multiple of the old one hold only part of the
        # variance, or mean of squares (see transfer/growth_maps.py); the norms' epsilon follows it.
        tiles = width // old_width if is_cloned else 1
        tiled_share = tiles * old_width / width
        return dataclasses.replace(
            self,
            d_model=width,
            n_heads=n_heads,
            n_layers=self.n_layers + extra_layers,
            norm_eps=self.norm_eps * tiled_share,
        )
