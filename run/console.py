"""What a run prints: phase headers, progress bars, and the closing boundary summary."""

from __future__ import annotations

from tqdm import tqdm

from config import TrainingConfig
from phases import PHASES, Phase
from training.duration import seconds_of_phases
from training.heldout import bits_per_byte
from training.plan import Plan
from training.ranks import team
from transfer.verify_growth_mechanics import LARGEST_JUMP


def phase_header(phase: Phase, plan: Plan, config: TrainingConfig) -> str:
    model, count = (each[phase.number - 1] for each in (plan.models, plan.counts))
    rule = "  " + "─" * 57
    if model.is_moe:
        active = f"(top-{model.top_k} of {model.n_experts} experts)"
    else:
        active = "(Dense model)"
    lines = [
        "",
        "=" * 60,
        f"  PHASE {phase.number}  —  {phase.title}",
        f"  Steps: {config.steps(phase.number)}  |  LR: {config.learning_rate(phase.number):g}"
        f"  |  Device: {plan.machine.device}",
        rule,
        f"  Total Parameters:       {count.total / 1e6:.2f} M",
        f"  Active Params/tok:      {count.active / 1e6:.2f} M  {active}",
    ]
    if model.is_moe:
        lines += [
            f"  Inactive Params:        {count.inactive / 1e6:.2f} M  ({count.idle_experts} experts idle)",
            rule,
            f"  Efficiency: {count.efficiency:.1%} active per forward pass",
        ]
    return "\n".join(lines + ["=" * 60])


def duration_line(plan: Plan, config: TrainingConfig, begins_with: int, step: int = 0) -> str:
    """About how long training will take on this device, which is timed now; not told where several ranks share the work.

    Args:
        begins_with, step: the number of the phase, and of the step in it, with which training begins.
    """
    if plan.machine.n_ranks > 1:
        return "How long several ranks will take is not told"
    n_steps = [0 if phase.number < begins_with else config.steps(phase.number) for phase in PHASES]
    n_steps = [n - step * (phase.number == begins_with) for n, phase in zip(n_steps, PHASES)]
    if not any(n_steps):
        return "All of its steps are trained"
    seconds = seconds_of_phases(plan, config, n_steps)
    parts = ", ".join(f"phase {phase.number} {in_words(s)}" for phase, s in zip(PHASES, seconds) if s)
    precision = "bf16" if plan.machine.compute_dtype else "fp32"
    return f"About {in_words(sum(seconds))} of training in {precision}, by timing this device now: {parts}"


def in_words(seconds: float) -> str:
    """A time to plan by: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "under 1 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def progress_bar(phase: Phase, first: int, n_steps: int) -> tqdm:
    """On a terminal alone, and of one process."""
    hidden = None if team().is_first else True  # None: where there is no terminal
    return tqdm(total=n_steps, initial=first, desc=f"phase {phase.number}", unit="step", disable=hidden, leave=False)


def jump_verdict(jump: float, phase: Phase) -> str:
    """Of the jump into `phase`."""
    if not abs(jump) <= LARGEST_JUMP:
        return "❌ LARGE"
    return "✅ Small (normal)" if phase.made_by == "upcycle" else "✅ TINY (success!)"


def boundary_summary(losses: dict[str, float], bytes_per_token: float) -> str:
    """The closing box. All losses are held-out, in fp32; jumps compare the same batches.

    A run that started in a later phase has no figures of those before.
    """
    bar = "═" * 59
    lines = ["", "BOUNDARY SUMMARY  (held-out losses, fp32)", bar]

    def add(label: str, name: str) -> None:
        if name in losses:
            bits = bits_per_byte(losses[name], bytes_per_token)
            lines.append(f"  {label:<24}:  {losses[name]:.4f}   {bits:.3f} bits per byte")

    for phase in PHASES:
        n = phase.number
        if phase.before:
            add(f"Phase {n} first loss", f"phase{n}_first")
        add(f"Phase {n} final loss", f"phase{n}_final")
        if phase.jump_name in losses:
            jump = losses[phase.jump_name]
            lines.append(f"  {f'Phase {n - 1}→{n} jump':<24}:  {abs(jump):.4f}  {jump_verdict(jump, phase)}")
        if phase.before and phase.after:
            lines.append("")
    return "\n".join([*lines, f"  {f'Phase {n} total drop':<24}:  {losses['total_drop']:.4f}", bar])
