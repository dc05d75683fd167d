"""Which old unit each new unit of a grown model comes from.

A model has four kinds of units along its axes: residual features, groups of heads, features of heads
and hidden units. Growth makes each axis longer; an `AxisMap` says how. Whatever *writes* an axis (rows
of a matrix, biases, embeddings) is copied to every copy of the unit; whatever *reads* it (columns)
is divided by the number of copies, so that a sum over the copies is the old value.

A group is a key-value head with the query heads that share it, in most models one. Groups and hidden
units may have uneven numbers of copies. Residual features may not: a norm takes mean and variance, or
the mean of squares, over all of them. Where the width is no multiple of the old one, the residual
holds `tiles` whole copies, and what is left over is filled (the idea of LEMON, Wang et al. 2023): with
the *mean* of the old features before a LayerNorm, whose mean it does not move, with *zero* before an
RMSNorm. Either shrinks the variance, or the mean of squares, by `tiled_share`, for which the norms'
gain and epsilon make up, and comes out of the norm as zero.
The mathematics is in docs/PHASE3_BILATERAL_GROWTH.md.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from config import ModelConfig, UserError

MEAN = -1  # the source of a unit that holds the mean of all old units
ZERO = -2  # and of one that holds zero
NOISE_ROWS = 512


@dataclass(frozen=True)
class AxisMap:
    """How one axis of `n_old` units grows.

    source: int64 (new,), the old unit that each new unit copies, or what fills it, `MEAN` or `ZERO`.
    """

    source: Tensor
    n_old: int

    @classmethod
    def tiled(cls, n_old: int, n_new: int) -> AxisMap:
        """0 1 2 … 0 1 2 …: copies differ by at most one where `n_new` is no multiple."""
        return cls(torch.arange(n_new) % n_old, n_old)

    @classmethod
    def tiled_with_filling(cls, n_old: int, n_new: int, filling: int, tiles: int | None = None) -> AxisMap:
        """Whole tiles, as many as there is room for if not given; then `MEAN` or `ZERO`, for the units left over."""
        source = torch.arange(n_new) % n_old
        source[(tiles or n_new // n_old) * n_old :] = filling
        return cls(source, n_old)

    def repeated_inside(self, size: int) -> AxisMap:
        """The map of the `size` features that each unit owns (a head's, say)."""
        inside = self.source[:, None] * size + torch.arange(size)
        return AxisMap(inside.flatten(), self.n_old * size)

    @property
    def is_filling(self) -> Tensor:
        """bool (new,): which units copy none."""
        return self.source < 0

    @property
    def tiled_share(self) -> float:
        """Share of the new units that are copies; 1 where there is no filling."""
        return 1 - self.is_filling.double().mean().item()

    @property
    def copies(self) -> Tensor:
        """int64 (new,): among how many new units the old unit of each is divided; 1 for fillings."""
        counts = torch.bincount(self.source[~self.is_filling], minlength=self.n_old)
        return torch.where(self.is_filling, 1, counts[self.source.clamp(min=0)])

    def written(self, x: Tensor, dim: int = -1, into: Tensor | None = None) -> Tensor:
        """What is written to the old axis, written to the new one: copied, or filled; in a tensor that is there, or a new
        one."""
        y = self._gathered(x, dim, into)
        fill = self.is_filling.nonzero().flatten().to(x.device)
        if len(fill):
            filling = x.mean(dim, keepdim=True) * float(self.source[-1] == MEAN)
            y.index_copy_(dim, fill, filling.repeat_interleave(len(fill), dim))
        return y

    def normalised(self, x: Tensor) -> Tensor:
        """What a norm hands on along the last axis: copied, and zero at the fillings."""
        y = self._gathered(x, -1)
        return y.masked_fill_(self.is_filling.to(x.device), 0) if self.is_filling.any() else y

    def read(self, x: Tensor, dim: int = -1, power: int = 1) -> Tensor:
        """What reads the old axis, reading the new one: divided by the copies (to a power), zero at fillings."""
        shape = [1] * x.dim()
        shape[dim] = -1
        y = self._gathered(x, dim).div_((self.copies.to(x) ** power).view(shape))
        return y.masked_fill_(self.is_filling.to(x.device).view(shape), 0) if self.is_filling.any() else y

    def zero_later_copies(self, x: Tensor, dim: int) -> None:
        """Keeps, in place, the first copy of each old unit; later ones and fillings become zero."""
        later = self.is_filling.clone()
        later[self.clone_pairs()[1]] = True
        x.index_fill_(dim, later.nonzero().flatten().to(x.device), 0)

    def add_cancelling_noise(self, weight: Tensor, std: float, generator: torch.Generator) -> None:
        """Adds, in place along the last axis, noise that sums to zero over the copies of each old unit.

        Where the copies of a unit hold the same value, as they do at the moment of growth, a
        matrix with this noise computes what it computed without. A unit with a single copy gets
        none; fillings, which a norm turns to zero, get free noise. The noise is Gaussian with
        standard deviation `std` wherever it is not zero. `generator` is on the weight's device.
        """
        source, is_filling = self.source.clamp(min=0).to(weight.device), self.is_filling.to(weight.device)
        copies = self.copies.to(weight)
        # Centring c values leaves (c - 1) / c of their variance.
        scale = torch.where(copies > 1, std * (copies / (copies - 1).clamp(min=1)).sqrt(), 0.0)
        scale[is_filling] = std
        share = torch.where(is_filling, 0.0, 1 / copies)
        # By runs of rows: large temporaries cost more than the noise itself.
        for rows in weight.view(-1, weight.shape[-1]).split(NOISE_ROWS):
            noise = torch.empty_like(rows).normal_(0.0, 1.0, generator=generator)
            mean = rows.new_zeros(len(rows), self.n_old).index_add_(-1, source, noise * share)
            noise -= mean.index_select(-1, source).masked_fill_(is_filling, 0)
            rows += noise.mul_(scale)

    def clone_pairs(self) -> tuple[Tensor, Tensor]:
        """Two int64 tensors: neighbouring copies of the same old unit (and neighbouring fillings)."""
        order = self.source.argsort(stable=True)
        same = self.source[order][1:] == self.source[order][:-1]
        return order[:-1][same], order[1:][same]

    def _gathered(self, x: Tensor, dim: int, into: Tensor | None = None) -> Tensor:
        return torch.index_select(x, dim, self.source.clamp(min=0).to(x.device), out=into)


@dataclass(frozen=True)
class GrowthMaps:
    """The maps of all axes between two geometries, and the origin of every block.

    groups: key-value heads, each with its `queries_per_kv` query heads.
    gains: the residual as the gains of norms have it, which must not be zero where the residual is: what would not
        leave the norm would never learn.
    block_origins: for each new block, the old block that it grew from; None for an identity block.
    """

    residual: AxisMap
    gains: AxisMap
    groups: AxisMap
    hidden: AxisMap
    queries_per_kv: int
    head_dim: int
    block_origins: list[int | None]
    tied: bool = True

    @classmethod
    def between(cls, old: ModelConfig, new: ModelConfig, is_cloned: bool = True) -> GrowthMaps:
        """The maps of width growth by clones; or, not `is_cloned`, of "zero-copy" (SPARKLING, 2026).

        There new residual features hold what a norm turns to zero, and are read at random; new hidden units compute zero,
        and are read at random. So no two units are ever alike. Heads are clones in either.

        Raises:
            UserError: `new` is no growth of `old`.
        """
        same = ("vocab_size", "tokenizer", "n_experts", "top_k", "tied", "architecture")
        differing = [name for name in same if getattr(old, name) != getattr(new, name)]
        if differing or new.d_model < old.d_model or new.n_layers < old.n_layers:
            reason = f"{', '.join(differing)} differ" if differing else "it is smaller somewhere"
            raise UserError(f"the new model is no growth of the old one: {reason}")
        group_width = old.queries_per_kv * old.head_dim
        if new.d_model % group_width:
            kind = "head_dim" if old.queries_per_kv == 1 else "key-value group of heads, of width"
            raise UserError(f"the width {new.d_model} is no multiple of the old {kind} {group_width}")
        tiles = None if is_cloned else 1
        residual, gains = (
            AxisMap.tiled_with_filling(old.d_model, new.d_model, filling, tiles)
            for filling in (ZERO if old.is_llama else MEAN, MEAN)
        )
        hidden = AxisMap.tiled(old.d_hidden, new.d_hidden)
        return cls(
            residual=residual,
            gains=gains,
            # As many heads as the width should have: a model that has others fails the RoPE check.
            groups=AxisMap.tiled(old.n_kv_heads, new.d_model // group_width),
            hidden=hidden if is_cloned else AxisMap.tiled_with_filling(old.d_hidden, new.d_hidden, ZERO, tiles=1),
            queries_per_kv=old.queries_per_kv,
            head_dim=old.head_dim,
            block_origins=block_origins(old.n_layers, new.n_layers - old.n_layers),
            tied=new.tied,
        )

    def old_name(self, name: str) -> str | None:
        """The old parameter from which the new one `name` grew; None in an identity block."""
        if not name.startswith("blocks."):
            return name
        _, block, inside = name.split(".", 2)
        origin = self.block_origins[int(block)]
        return None if origin is None else f"blocks.{origin}.{inside}"

    @property
    def new_blocks(self) -> list[int]:
        """The identity blocks, by their place in the new model."""
        return [block for block, origin in enumerate(self.block_origins) if origin is None]

    def axes(self, name: str) -> tuple[AxisMap | None, AxisMap | None]:
        """The axis that the parameter writes and the one that it reads; None where there is none or it stays.

        A matrix writes its rows and reads its columns. What has one axis (biases, embedding, norms) writes
        it, but for the final norm of a tied model: nothing but the embedding stands behind it, so it carries the
        division. A model with an output matrix of its own divides that.
        """
        layer, kind = name.split(".")[-2:]
        rows, columns = {
            "embedding": (self.residual, None),
            "attention_norm": (self.gains, None),
            "mlp_norm": (self.gains, None),
            "final_norm": (None, self.residual) if self.tied else (self.gains, None),
            "unembedding": (None, self.residual),
            "qkv": (self.qkv_rows, self.residual),
            "out": (self.residual, self.head_features),
            "up": (self.hidden, self.residual),
            "down": (self.residual, self.hidden),
            "router": (None, self.residual),
        }[layer]
        is_matrix_bias = kind == "bias" and not layer.endswith("norm")
        return (rows, None) if is_matrix_bias else (rows, columns)

    @property
    def heads(self) -> AxisMap:
        return self.groups.repeated_inside(self.queries_per_kv)

    @property
    def qkv_rows(self) -> AxisMap:
        return self.groups.repeated_inside((self.queries_per_kv + 2) * self.head_dim)

    @property
    def head_features(self) -> AxisMap:
        return self.heads.repeated_inside(self.head_dim)


def block_origins(n_old: int, n_extra: int) -> list[int | None]:
    """Old blocks in order, with `n_extra` identity blocks (None) spread evenly among them.

    The numbers of identity blocks after any two old ones differ by at most one.
    7 blocks and 4 more: 0 – 1 2 – 3 4 – 5 6 –, where – is an identity block.
    """
    origins: list[int | None] = []
    for block in range(n_old):
        before, after = ((n * n_extra + n_old // 2) // n_old for n in (block, block + 1))
        origins += [block] + [None] * (after - before)
    return origins
