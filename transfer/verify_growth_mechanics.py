"""The four growth checks: RoPE, router, symmetry, function. Each can be called alone.

    from transfer.verify_growth_mechanics import check_rope_integrity
    check_rope_integrity(old_model, new_model)

All of them test the models in use: real activations on probe tokens, real gradients of the
language-model loss. The first two feed a new layer with the old layer's own inputs, widened, so
that each names the part that is broken and not whatever comes after it. Drifts are relative, and how
much of them rounding explains depends on the dtype of the weights (rounding.py). Experts that rounding
may have exchanged are left out of the verdict, and counted (near_ties.py).

docs/GROWTH_VERIFICATION.md says what each check means and what to do when it fails.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from config import UserError
from models import Transformer, exact_arithmetic, next_token_loss
from models.attention import apply_rope, for_all_heads, rope_tables
from models.shards import unsharded
from transfer.clone_gradients import compare_clone_gradients
from transfer.growth_maps import GrowthMaps
from transfer.near_ties import RouterChoices, following
from transfer.probe import probe_tokens, trace
from transfer.rounding import drift, dtype_name, median_drift, precision_of, rms

ROPE_HINT = """In scale_bilaterally(), ensure:
      n_heads = old_model.blocks[0].attention.n_heads * scale_factor"""
ROUTER_HINT = """In hyperclone_weight() for router:
      w_new = w.repeat(1, scale_factor) / scale_factor  # ← Add division"""
SYMMETRY_HINT = """Increase noise in config.py, or by --noise-std:
      noise_std = 1.0  # relative to each weight's standard deviation; it cancels, so it may be large"""
FUNCTION_HINT = "Read docs/GROWTH_VERIFICATION.md section 4 for detailed debugging"

# Of the held-out loss at a boundary, in nats: exact growth leaves rounding alone.
LARGEST_JUMP = 1e-5


@dataclass
class CheckResult:
    """One check's verdict; true when it passed. `reason` and `hint` are empty unless it failed."""

    name: str
    passed: bool
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    hint: str = ""

    def __bool__(self) -> bool:
        return self.passed


def check_rope_integrity(
    old_model: Transformer, new_model: Transformer, tokens: Tensor | None = None, tolerance: float | None = None
) -> CheckResult:
    """CHECK 1: every head turns and compares positions as the head that it copies.

    Scores q·k of all old blocks, after RoPE, on the old blocks' own inputs; the new ones are taken
    at shifted positions, since RoPE may depend on distances alone.

    Args:
        tokens: int64 (batch, time + 1); fixed random ones if None.
        tolerance: largest drift accepted; None takes that of the weights' dtype in `PRECISIONS`.
    Raises:
        UserError: weights of another dtype, no growth of the old model, or too many tokens.
    """
    _heading(1, "RoPE integrity")
    tolerance, text = _tolerance(new_model, tolerance)
    old, new = old_model.config, new_model.config
    figures = {
        "old_head_dim": old.head_dim,
        "new_head_dim": new.head_dim,
        "old_heads": old.n_heads,
        "new_heads": new.n_heads,
    }
    print(f"  head_dim {old.head_dim} → {new.head_dim}, heads {old.n_heads} → {new.n_heads}")
    if old.head_dim != new.head_dim:
        reason = f"RoPE broken: head_dim changed from {old.head_dim} to {new.head_dim}"
        return _verdict("rope", False, figures, reason, ROPE_HINT)
    maps, tokens = GrowthMaps.between(old, new), _tokens(old_model, tokens)
    score_drift = 0.0
    with torch.no_grad(), exact_arithmetic(old_model, new_model):
        for index, x_BTD in _old_inputs(maps, trace(old_model, tokens).attention_inputs):
            # In bf16 the scores' own rounding would hide that of the weights.
            x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
            expected = _scores(old_model, maps.block_origins[index], x_BTD, shift=0)
            actual = _scores(new_model, index, maps.residual.normalised(x_BTD), shift=7)
            score_drift = max(score_drift, drift(actual, maps.heads.written(expected, dim=1)))
    figures |= {"score_drift": score_drift, "tolerance": tolerance}
    print(f"  largest drift of attention scores: {score_drift:.1e} ({text})")
    reason = f"RoPE broken: attention scores drift by {score_drift:.1e}"
    return _verdict("rope", score_drift <= tolerance, figures, reason, ROPE_HINT)


def check_router_scaling(
    old_model: Transformer, new_model: Transformer, tokens: Tensor | None = None, tolerance: float | None = None
) -> CheckResult:
    """CHECK 2: every router gives the logits, and so the experts, that it gave before.

    A dense model has no router and passes. Arguments as in `check_rope_integrity`.
    """
    _heading(2, "Router scaling")
    if not old_model.config.is_moe:
        print("  no router: the model is dense")
        return _verdict("router", True, {})
    tolerance, text = _tolerance(new_model, tolerance)
    maps, tokens = GrowthMaps.between(old_model.config, new_model.config), _tokens(old_model, tokens)
    choices = RouterChoices(old_model.config.top_k, tolerance)
    logit_drift, shares = 0.0, []
    with torch.no_grad():
        for index, x_BTD in _old_inputs(maps, trace(old_model, tokens).router_inputs):
            with unsharded(old_model.blocks[maps.block_origins[index]]) as block:
                old_NE = block.mlp.router(x_BTD.flatten(0, 1))
            with unsharded(new_model.blocks[index]) as block:
                new_NE = block.mlp.router(maps.residual.normalised(x_BTD).flatten(0, 1))
            logit_drift = max(logit_drift, drift(new_NE, old_NE))
            choices.compare(index, old_NE, new_NE)
            chosen_Nk = new_NE.topk(old_model.config.top_k).indices
            shares.append(torch.bincount(chosen_Nk.flatten(), minlength=old_model.config.n_experts) / chosen_Nk.numel())
    share = torch.stack(shares)
    figures = {
        "logit_drift": logit_drift,
        "tokens_keeping_experts": choices.smallest_share_kept,
        "smallest_expert_share": share.min().item(),
        "largest_expert_share": share.max().item(),
        "tolerance": tolerance,
        **choices.figures,
    }
    print(f"  largest drift of router logits: {logit_drift:.1e} ({text})")
    print(f"  tokens that keep their experts: {choices.smallest_share_kept:.2%} in the worst layer")
    print(f"  {choices}")
    print(f"  expert shares on these tokens, for information: {share.min():.1%} to {share.max():.1%}")
    reasons = [] if logit_drift <= tolerance else [f"Router logits drifted by {logit_drift:.1e}"]
    reasons += choices.faults(precision_of(new_model).turned_share)
    return _verdict("router", not reasons, figures, "; ".join(reasons), ROUTER_HINT)


def check_symmetry_breaking(
    old_model: Transformer, new_model: Transformer, tokens: Tensor | None = None
) -> CheckResult:
    """CHECK 3: clones receive different gradients of the language-model loss, in every block.

    It clears the gradients of `new_model`. Tokens as in `check_rope_integrity`.
    """
    _heading(3, "Symmetry breaking")
    maps, tokens = GrowthMaps.between(old_model.config, new_model.config), _tokens(old_model, tokens)
    if old_model.config.d_model == new_model.config.d_model:
        print("  no clones: the width did not grow")
        return _verdict("symmetry", True, {"clone_pairs": 0})
    precision = precision_of(new_model)
    comparisons = compare_clone_gradients(new_model, maps, tokens, precision.locked_below)
    if not comparisons:
        return _verdict("symmetry", False, {"clone_pairs": 0}, "No clone received any gradient", SYMMETRY_HINT)
    for kind in ("heads", "hidden units", "residual features"):
        of_kind = [c for c in comparisons if c.kind == kind]
        if of_kind:
            low = min(of_kind, key=lambda c: c.median_difference)
            n_pairs = sum(c.n_pairs for c in of_kind)
            print(
                f"  {kind:<18} {n_pairs:>7} clone pairs, median difference of gradients "
                f"{low.median_difference:.1e} or more (block {low.block})"
            )
    worst = max(comparisons, key=lambda c: c.n_locked / c.n_pairs)
    figures = {
        "clone_pairs": sum(c.n_pairs for c in comparisons),
        "locked_pairs": sum(c.n_locked for c in comparisons),
        "smallest_median_difference": min(c.median_difference for c in comparisons),
    }
    print(f"  pairs with equal gradients: {figures['locked_pairs']} of {figures['clone_pairs']}")
    reason = (
        f"Gradients are identical: {worst.n_locked} of {worst.n_pairs} pairs of {worst.kind} "
        f"in block {worst.block} are locked"
    )
    passed = worst.n_locked <= precision.locked_share * worst.n_pairs
    return _verdict("symmetry", passed, figures, reason, SYMMETRY_HINT)


def check_functional_identity(
    old_model: Transformer, new_model: Transformer, tokens: Tensor | None = None, tolerance: float | None = None
) -> CheckResult:
    """CHECK 4: after every block, and in logits and loss, the new model computes what the old one did.

    Names the first layer that drifts. It serves dense → MoE as well as bilateral growth. Where rounding
    turns a near-tie of a router, the new model is led along the experts that the old one took. In bf16
    the median token's drift decides: rounding moves some tokens by as much as the tolerance there.
    Arguments as in `check_rope_integrity`.
    """
    _heading(4, "Functional identity")
    tolerance, text = _tolerance(new_model, tolerance)
    drift_of = drift
    if new_model.embedding.weight.dtype == torch.bfloat16:
        print("  in bf16: the drift of the median token")
        drift_of = median_drift
    config, tokens = new_model.config, _tokens(old_model, tokens)
    maps = GrowthMaps.between(old_model.config.upcycled(config.n_experts, config.top_k), config)
    old = trace(old_model, tokens)
    with following(new_model, old.router_logits, maps.block_origins, tolerance) as choices:
        new = trace(new_model, tokens)
        with torch.no_grad(), exact_arithmetic(old_model, new_model):
            old_loss, new_loss = (next_token_loss(model, tokens)[0].item() for model in (old_model, new_model))
    drifts = [("embedding", drift_of(new.embedded, maps.residual.written(old.embedded)))]
    expected = maps.residual.written(old.embedded)
    size = rms(expected)
    for index, (origin, residual) in enumerate(zip(maps.block_origins, new.residuals)):
        # An identity block has to hand on what it was given: what the last old block made.
        expected = expected if origin is None else maps.residual.written(old.residuals[origin])
        size = torch.maximum(size, rms(expected))
        name = f"block {index} " + ("(identity)" if origin is None else f"(old block {origin})")
        drifts.append((name, drift_of(residual, expected, size)))
    logit_difference, loss_difference = (new.logits - old.logits).abs().max().item(), abs(new_loss - old_loss)
    drifts += [("logits", drift_of(new.logits, old.logits)), ("loss", loss_difference)]
    for name, value in drifts[:-1]:
        print(f"  {name:<24} drift {value:.1e}")
    print(f"  max|Δlogit| {logit_difference:.1e}, |Δloss| {loss_difference:.1e} ({text})")
    figures = {
        "largest_drift": max(value for _, value in drifts),
        "logit_difference": logit_difference,
        "loss_difference": loss_difference,
        "tolerance": tolerance,
    }
    if choices.n:
        print(f"  {choices}")
        figures |= choices.figures
    first = next(((name, value) for name, value in drifts if not value <= tolerance), None)
    reasons = [f"Layer-wise drift exceeds tolerance: first in {first[0]}, by {first[1]:.1e}"] if first else []
    reasons += choices.faults(precision_of(new_model).turned_share)
    return _verdict("functional", not reasons, figures, "; ".join(reasons), FUNCTION_HINT)


def detailed_growth_check(
    old_model: Transformer, new_model: Transformer, tokens: Tensor | None = None, tolerance: float | None = None
) -> dict[str, CheckResult]:
    """All four checks and their summary; by name: rope, router, symmetry, functional.

    Args:
        tokens: int64 (batch, time + 1), best from held-out stories; fixed random ones if None.
        tolerance: largest relative drift accepted; None takes that of the weights' dtype in
            `PRECISIONS`. For fp32 1e-5 is stricter, 1e-3 looser.
    Raises:
        UserError: weights of another dtype, no growth of the old model, or too many tokens.
    """
    results = [
        check_rope_integrity(old_model, new_model, tokens, tolerance),
        check_router_scaling(old_model, new_model, tokens, tolerance),
        check_symmetry_breaking(old_model, new_model, tokens),
        check_functional_identity(old_model, new_model, tokens, tolerance),
    ]
    print("\n" + "#" * 70)
    print(f"#{'VERIFICATION SUMMARY':^68}#")
    print("#" * 70)
    for result in results:
        print(f"  {result.name.upper():<20}: {'✓ PASSED' if result else '✗ FAILED'}")
    print("#" * 70)
    if all(results):
        print("  ✓ ALL CHECKS PASSED\n  Model is ready for Phase 3 training.")
    else:
        print(f"  ✗ {sum(not r for r in results)} OF {len(results)} CHECKS FAILED")
    print("#" * 70)
    return {result.name: result for result in results}


def _tolerance(model: Transformer, given: float | None) -> tuple[float, str]:
    """The tolerance to use, and how a report names it."""
    tolerance = precision_of(model).tolerance if given is None else given
    return tolerance, f"tolerance {tolerance:.0e} for {dtype_name(model.embedding.weight.dtype)}"


def _heading(number: int, title: str) -> None:
    print(f"\n{'─' * 70}\n  CHECK {number}: {title}\n{'─' * 70}")


def _verdict(name: str, passed: bool, figures: dict, reason: str = "", hint: str = "") -> CheckResult:
    if passed:
        print("  ✓ PASSED")
        return CheckResult(name, True, figures)
    print(f"  ✗ FAILED — {reason}\n  {hint}")
    return CheckResult(name, False, figures, reason, hint)


def _tokens(model: Transformer, tokens: Tensor | None) -> Tensor:
    if tokens is None:
        return probe_tokens(model)
    if tokens.shape[1] > model.config.context_length + 1:
        raise UserError(
            f"{tokens.shape[1]} probe tokens are more than the context length {model.config.context_length} and one"
        )
    return tokens.to(model.device)


def _old_inputs(maps: GrowthMaps, inputs: list[Tensor]) -> list[tuple[int, Tensor]]:
    """(new block, input of the old block that it grew from) for all blocks that are no identity."""
    return [(index, inputs[origin]) for index, origin in enumerate(maps.block_origins) if origin is not None]


def _scores(model: Transformer, block: int, x_BTD: Tensor, shift: int) -> Tensor:
    """q·k after RoPE, (batch, heads, time, time), as if the sequence began at position `shift`."""
    attention, T = model.blocks[block].attention, x_BTD.shape[1]
    with unsharded(model.blocks[block]):
        q_BHTK, k_BHTK = for_all_heads(*attention.split_heads(attention.qkv(x_BTD))[:2])
    rope = rope_tables(model.config, T + shift, x_BTD.device, x_BTD.dtype)
    cos_TR, sin_TR = (table[shift:] for table in rope)
    return apply_rope(q_BHTK, cos_TR, sin_TR) @ apply_rope(k_BHTK, cos_TR, sin_TR).transpose(-1, -2)
