"""Crossing from one phase to the next: the same loss, the same story, the checks, or a stop."""

from __future__ import annotations

from torch import Tensor

from config import UserError
from models import Transformer
from models.lean import keep_weights
from phases import Phase
from run.console import jump_verdict
from run.decoration import decoration
from run.liveness_watch import record_liveness
from run.records import continuation, sample_prompt
from run.run import Run
from training.heldout import bits_per_byte, heldout_loss
from training.ranks import team
from transfer.growth_maps import GrowthMaps
from transfer.near_ties import following, parting, recording, rounding_parts
from transfer.probe import PROBE_BATCH, PROBE_TOKENS
from transfer.rounding import precision_of
from transfer.verify_growth_mechanics import (
    LARGEST_JUMP,
    CheckResult,
    check_functional_identity,
    detailed_growth_check,
)


class GrowthCheckFailed(UserError):
    """A boundary changed the model, or left its clones locked; the next phase must not start."""

    exit_code = 3


def cross_boundary(run: Run, phase: Phase, old_model: Transformer, new_model: Transformer) -> None:
    """Into `phase`: measures both models on the same held-out batches in fp32, and runs the growth checks.

    Raises:
        GrowthCheckFailed: unless `ignore_failed_checks`; its text names the checks.
    """
    config, losses = run.config, run.progress.losses
    from_phase, to_phase = phase.before.number, phase.number
    loss_before = heldout_loss(old_model, run.heldout)
    loss_after, n_near_ties = loss_beside(run, old_model, new_model, loss_before)
    jump = loss_after - loss_before
    same_story, told = None, ""
    if config.sample_tokens:
        with decoration(f"the stories before and after growth to phase {to_phase}", old_model, new_model) as comparison:
            same_story, told = compare_stories(run, old_model, new_model)
        if comparison.is_left_out:
            same_story, told = None, "not compared; the loss and the growth checks decide without it"
    results = run_checks(run, phase, old_model, new_model)

    print(
        f"\n  Phase {from_phase}→{to_phase} held-out loss, same batches, fp32: "
        f"{loss_before:.6f} → {loss_after:.6f}, jump {jump:+.1e}  {jump_verdict(jump, phase)}"
    )
    if n_near_ties:
        print(f"  near-ties: {n_near_ties} choices of experts, left out of the loss after growth")
    if told:
        print(f"  Story of the grown model: {told}")
    rounding = 0.0
    if run.plan.is_lean:
        keep_weights(new_model, in_two_parts=True)
        rounding = loss_beside(run, old_model, new_model, loss_after)[0] - loss_after
        print(f"  Its matrices are now kept in three bytes a weight: held-out loss {rounding:+.1e}")
    losses.setdefault(f"phase{from_phase}_final", loss_before)  # of a run that started here
    losses[f"phase{to_phase}_first"] = loss_after
    losses[phase.jump_name] = jump
    run.history.write(
        "boundary",
        from_phase=from_phase,
        to_phase=to_phase,
        loss_before=loss_before,
        loss_after=loss_after,
        jump=jump,
        near_ties_left_out=n_near_ties,
        rounding=rounding,
        bits_per_byte=bits_per_byte(loss_after, run.data.bytes_per_token),
        same_story=same_story,
        tokens=run.tokens_seen,
    )
    for result in results:
        run.history.write(
            "verification",
            to_phase=to_phase,
            check=result.name,
            passed=result.passed,
            reason=result.reason,
            **result.figures,
        )

    failed = team().agreed(failures(results, jump, same_story))
    if failed and not config.ignore_failed_checks:
        raise GrowthCheckFailed(
            f"growth checks failed before phase {to_phase}: {'; '.join(failed)}. "
            f"{phase.before.path_in(run.folder)} is safe; --ignore-failed-checks would go on"
        )
    if failed:
        print(f"  ⚠️ going on although these failed: {'; '.join(failed)}")
    record_liveness(run, phase, new_model, steps=0)


def loss_beside(run: Run, old_model: Transformer, new_model: Transformer, expected: float) -> tuple[float, int]:
    """The new model's held-out loss; where it is not as `expected`, without near-ties that turned, and their number."""
    loss = heldout_loss(new_model, run.heldout)
    if abs(loss - expected) <= LARGEST_JUMP:
        return loss, 0
    return without_near_ties(run, old_model, new_model, loss)


def failures(results: list[CheckResult], jump: float, same_story: bool | None) -> list[str]:
    """What says that growth changed the function, and why."""
    failed = [f"{result.name} ({result.reason})" for result in results if not result]
    if not abs(jump) <= LARGEST_JUMP:
        failed.append(f"jump ({jump:+.1e} nats, allowed {LARGEST_JUMP:.0e})")
    if same_story is False:
        failed.append("story (the grown model tells another one)")
    return failed


def without_near_ties(run: Run, old_model: Transformer, new_model: Transformer, loss: float) -> tuple[float, int]:
    """The new model's held-out loss, led along the old one's choice wherever a near-tie turned, and their number.

    One such token can move the mean over a few thousand by more than rounding may. Where anything but near-ties changed,
    `loss` and 0.
    """
    tolerance, turned_share = run.config.check_tolerance, precision_of(new_model).turned_share
    origins = origins_between(old_model, new_model)
    losses, n_near_ties, n_faults = [], 0, 0
    for batch in run.heldout:
        with recording(old_model) as old_logits:
            heldout_loss(old_model, [batch])
        with following(new_model, old_logits, origins, tolerance) as choices:
            losses.append(len(batch) * heldout_loss(new_model, [batch]))
        n_near_ties += choices.n_turned
        n_faults += len(choices.faults(turned_share))
    n_near_ties, n_faults = (round(team().mean(n) * team().size) for n in (n_near_ties, n_faults))
    n_windows = sum(map(len, run.heldout))
    return (loss, 0) if n_faults or not n_near_ties else (sum(losses) / n_windows, n_near_ties)


def origins_between(old_model: Transformer, new_model: Transformer) -> list[int | None]:
    """Also where a dense model has become a mixture of experts."""
    config = new_model.config
    return GrowthMaps.between(old_model.config.upcycled(config.n_experts, config.top_k), config).block_origins


def compare_stories(run: Run, old_model: Transformer, new_model: Transformer) -> tuple[bool | None, str]:
    """Whether both models tell the same story, and how to say it; None where they part and rounding explains it."""
    # The parts of a comparison in which several processes work together must not hang on what one of them finds.
    old_ids, new_ids = team().agreed([continuation(run, model) for model in (old_model, new_model)])
    place = parting(old_ids, new_ids)
    if place is None:
        return True, "the same, token for token"
    text = sample_prompt(run) + old_ids[:place]
    origins = origins_between(old_model, new_model)
    if rounding_parts(old_model, new_model, origins, text, run.config.check_tolerance):
        return None, f"the same up to token {place}, where rounding decides between near-tied choices"
    return False, f"differs from token {place + 1} on"


def run_checks(run: Run, phase: Phase, old_model: Transformer, new_model: Transformer) -> list[CheckResult]:
    """Upcycling has to keep the function; bilateral growth has to pass all four checks."""
    tokens, tolerance = probe(run.heldout), run.config.check_tolerance
    if phase.made_by == "upcycle":
        return [check_functional_identity(old_model, new_model, tokens, tolerance)]
    return list(detailed_growth_check(old_model, new_model, tokens, tolerance).values())


def probe(heldout: list[Tensor]) -> Tensor:
    """A few held-out tokens, int64 (2, ≤ 65)."""
    return heldout[0][:PROBE_BATCH, : PROBE_TOKENS + 1]
