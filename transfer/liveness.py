"""Does what growth added come to life? Are clones parting, does every new parameter learn?

The growth checks look at one gradient, at the boundary. This report looks at the weights, at the
boundary and again after some steps of training:

clones          cosine between the weights of two copies of one unit, or of two experts
gradients       share of the new parameters that no step so far has given any gradient
effective rank  how many directions the grown matrices use (a matrix of clones uses half)
experts         how evenly the routers use them

    print("\\n".join(liveness_report(model, old_config, tokens_BT, coverage).summary()))

with a `GradientCoverage` (transfer/gradient_coverage.py) that has watched those steps.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from config import ModelConfig
from models import Routing, Transformer
from models.products import long_product
from models.shards import whole_weight
from transfer.gradient_coverage import GradientCoverage, maps_between
from transfer.growth_maps import AxisMap, GrowthMaps


@dataclass
class CloneCosine:
    """Cosines between the weights of clones of one kind, over all blocks that have any."""

    kind: str  # "heads", "hidden units", "residual features"; "experts' up", "experts' down"
    n_pairs: int
    average: float  # over all pairs: the median, for experts the mean
    largest: float  # the same average in the block where it is largest
    largest_block: int


@dataclass
class LivenessReport:
    """All figures of one moment, as plain numbers, lists and dicts: `dataclasses.asdict` gives JSON.

    clone_cosines: None for a model that was neither upcycled nor grown in width.
    effective_rank: by matrix ("qkv", "out", "up", "down"), 0 to 1; the median over the first, the
        middle and the last old block. Of several matrices in one it is that of the first.
    identity_effective_rank: the same of the first identity block; None where there is none.
    smallest_expert_share: of a block's slots, 1 / n_experts if used alike; None if dense, and so
        are the block in which it was found and the entropies.
    expert_entropies: entropy of the shares, one per block, 0 (one expert) to 1 (all alike).
    coverage_steps, new_parameters, never_touched_share, never_touched_by_module: what a
        `GradientCoverage` counted; None without one.
    """

    clone_cosines: list[CloneCosine] | None
    effective_rank: dict[str, float]
    identity_effective_rank: dict[str, float] | None
    smallest_expert_share: float | None = None
    smallest_expert_share_block: int | None = None
    expert_entropies: list[float] | None = None
    coverage_steps: int | None = None
    new_parameters: int | None = None
    never_touched_share: float | None = None
    never_touched_by_module: dict[str, float] | None = None

    def summary(self) -> list[str]:
        """One to three lines to print."""
        lines = []
        if self.clone_cosines:
            top = max(self.clone_cosines, key=lambda c: c.largest)
            averages = ", ".join(f"{c.kind} {c.average:.3f}" for c in self.clone_cosines)
            lines.append(
                f"  clones: cosine {averages}; largest {top.largest:.3f} ({top.kind}, block {top.largest_block})"
            )
        if self.coverage_steps is not None:
            idle = ", ".join(f"{name} {share:.1%}" for name, share in self.never_touched_by_module.items() if share)
            lines.append(
                f"  gradients: {self.never_touched_share:.1%} of {self.new_parameters:,} new parameters had none "
                f"by step {self.coverage_steps}" + (f" ({idle})" if idle else "")
            )
        ranks = [("old blocks", self.effective_rank), ("identity block", self.identity_effective_rank)]
        texts = [f"{name} " + ", ".join(f"{k} {v:.2f}" for k, v in rank.items()) for name, rank in ranks if rank]
        lines.append("  effective rank: " + "; ".join(texts))
        if self.expert_entropies is not None:
            lines[-1] += (
                f"; experts: share ≥ {self.smallest_expert_share:.1%} (block {self.smallest_expert_share_block}), "
                f"entropy ≥ {min(self.expert_entropies):.2f}"
            )
        return lines


@torch.no_grad()
def liveness_report(
    model: Transformer, old_config: ModelConfig, tokens_BT: Tensor, coverage: GradientCoverage | None = None
) -> LivenessReport:
    """Measures a model that was upcycled or grown from `old_config`, now or some steps ago.

    It changes nothing: no parameter, gradient, precision or random stream.

    Args:
        tokens_BT: int64, one longer than the context, as for the loss; for the routers alone.
    Raises:
        UserError: the model's geometry is no growth of `old_config`.
        ValueError: the tokens are more than the context length and one.
    """
    maps = maps_between(old_config, model.config)
    clone_cosines = expert_cosines(model) if model.config.is_moe and not old_config.is_moe else []
    if model.config.d_model > old_config.d_model:
        clone_cosines += width_cosines(model, maps)
    old_blocks = [index for index, origin in enumerate(maps.block_origins) if origin is not None]
    sampled = sorted({old_blocks[0], old_blocks[len(old_blocks) // 2], old_blocks[-1]})
    ranks = [block_effective_ranks(model, index) for index in sampled]
    report = LivenessReport(
        clone_cosines=clone_cosines or None,
        effective_rank={kind: statistics.median(rank[kind] for rank in ranks) for kind in ranks[0]},
        identity_effective_rank=(
            block_effective_ranks(model, maps.block_origins.index(None)) if None in maps.block_origins else None
        ),
    )
    if model.config.is_moe:
        routings = model.hidden(tokens_BT[:, :-1].to(model.device))[1]
        model.rest()
        shares = expert_shares(routings)
        smallest = [min(layer) for layer in shares]
        report.smallest_expert_share = min(smallest)
        report.smallest_expert_share_block = smallest.index(min(smallest))
        report.expert_entropies = [normalised_entropy(layer) for layer in shares]
    if coverage is not None:
        report.coverage_steps = coverage.steps
        report.new_parameters = coverage.new_parameters
        report.never_touched_share = coverage.never_touched_share()
        report.never_touched_by_module = coverage.never_touched_by_module()
    return report


def width_cosines(model: Transformer, maps: GrowthMaps) -> list[CloneCosine]:
    """Cosines between the rows that produce two copies of one unit, in the blocks that are no identity.

    At growth by a whole factor with `noise_std` n they are about 1 / (1 + n²): such a row is the
    divided old one, w, plus noise of its own, at right angles to w and to the other row's noise, and
    of length n|w|, hence cos = |w|² / (|w|² + n²|w|²). At n = 0 it is 1, and stays so: clones that
    are equal learn alike (as long as no identity block reads the two copies differently).

    Where the factor is not whole, noise is on f times as many columns as hold copies of old ones,
    and the cosine is 1 / (1 + f n²). At 1.5 only the mean-filled columns of the residual have noise,
    so f is 1/2 for heads and hidden units. The only pairs of residual features are then the
    mean-filled ones; a mean of rows is short beside the noise, and their cosine is about 0.

    Pairs with a row of zeros are left out.
    """
    cosines: dict[str, dict[int, Tensor]] = {"heads": {}, "hidden units": {}, "residual features": {}}
    for index, block in enumerate(model.blocks):
        if maps.block_origins[index] is None:
            continue
        cosines["heads"][index] = row_cosines(whole_weight(block.attention.qkv), maps.qkv_rows)
        cosines["hidden units"][index] = row_cosines(whole_weight(block.mlp.up), maps.hidden)
        writers = (block.attention.out, block.mlp.down)
        cosines["residual features"][index] = torch.cat([row_cosines(whole_weight(w), maps.residual) for w in writers])
    return summarised(cosines, torch.median)


def row_cosines(weight: Tensor, axis: AxisMap) -> Tensor:
    """Cosine of each clone pair along the rows (…, row, in), fp32 or better, on the CPU."""
    first, second = (index.to(weight.device) for index in axis.clone_pairs())
    cosines = []
    # Expert by expert: the temporaries are three times as large as what they are made of.
    for matrix in weight.view(-1, *weight.shape[-2:]):
        matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
        length = torch.linalg.vector_norm(matrix, dim=-1)
        product = (matrix.index_select(0, first) * matrix.index_select(0, second)).sum(-1)
        cosines.append(product / (length[first] * length[second]))
    return torch.cat(cosines).cpu()


def expert_cosines(model: Transformer) -> list[CloneCosine]:
    """Cosines between the weights of any two experts of a layer; 1 at upcycling."""
    cosines: dict[str, dict[int, Tensor]] = {"experts' up": {}, "experts' down": {}}
    for index, block in enumerate(model.blocks):
        for kind, stack in zip(cosines, (block.mlp.up, block.mlp.down)):
            weight_EX = whole_weight(stack).flatten(1)
            weight_EX = weight_EX.to(torch.promote_types(weight_EX.dtype, torch.float32))
            gram_EE = long_product(weight_EX, weight_EX.T)
            length_E = gram_EE.diagonal().sqrt()
            first, second = torch.triu_indices(len(gram_EE), len(gram_EE), 1, device=gram_EE.device)
            cosines[kind][index] = (gram_EE / length_E / length_E[:, None])[first, second].cpu()
    return summarised(cosines, torch.mean)


def summarised(cosines: dict[str, dict[int, Tensor]], average: Callable[[Tensor], Tensor]) -> list[CloneCosine]:
    """One `CloneCosine` per kind, of cosines by kind and block; a kind without any pair is left out."""
    results = []
    for kind, by_block in cosines.items():
        by_block = {block: pairs[pairs.isfinite()] for block, pairs in by_block.items()}
        by_block = {block: pairs for block, pairs in by_block.items() if len(pairs)}
        if by_block:
            averages = {block: average(pairs).item() for block, pairs in by_block.items()}
            largest_block = max(averages, key=averages.get)
            pairs = torch.cat(list(by_block.values()))
            results.append(CloneCosine(kind, len(pairs), average(pairs).item(), averages[largest_block], largest_block))
    return results


def block_effective_ranks(model: Transformer, index: int) -> dict[str, float]:
    """Effective rank of a block's four matrices, of expert 0 where there are experts, of the gate where `up` has one."""
    block = model.blocks[index]
    layers = {"qkv": block.attention.qkv, "out": block.attention.out, "up": block.mlp.up, "down": block.mlp.down}
    ranks = {}
    for kind, layer in layers.items():
        weight = whole_weight(layer)
        ranks[kind] = effective_rank_share(weight.view(-1, *weight.shape[-2:])[0])
    return ranks


def effective_rank_share(weight: Tensor) -> float:
    """Effective rank over the full rank, 0 to 1, of a matrix (out, in); 0 if it is zero or not finite.

    The effective rank is exp(H(p)), with H the entropy and p the singular values divided by their
    sum (Roy & Vetterli 2007). A square matrix of random numbers has a share of about 0.80, one of
    1 : 4 has 0.97.

    By the eigenvalues of the Gram matrix of the smaller side, in fp64: a Gram matrix squares the
    rounding, and in fp32 what is zero would come out as some 1e-4 of the largest singular value.
    """
    # MPS has no fp64.
    weight = (weight.cpu() if weight.device.type == "mps" else weight).double()
    gram = weight @ weight.T if weight.shape[0] <= weight.shape[1] else weight.T @ weight
    if not 0 < gram.trace() < math.inf:
        return 0.0
    singular = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    entropy = torch.special.entr(singular / singular.sum()).sum()
    return entropy.exp().item() / len(gram)


def expert_shares(routings: list[Routing]) -> list[list[float]]:
    """Each layer's shares of slots by expert."""
    return [(routing.slots_per_expert_E / routing.slots_per_expert_E.sum()).tolist() for routing in routings]


def normalised_entropy(shares: list[float]) -> float:
    """Entropy over its largest value: 1 when all are alike (or there is only one), 0 when one has all."""
    if len(shares) == 1:
        return 1.0
    return -sum(share * math.log(share) for share in shares if share > 0) / math.log(len(shares))
