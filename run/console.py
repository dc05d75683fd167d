"""What a run prints: phase headers and the closing boundary summary."""

from __future__ import annotations

import torch

from config import ModelConfig
from models import ParameterCount
from phases import PHASE_TITLES
from training.evaluate import bits_per_byte
from transfer.verify_growth_mechanics import LARGEST_JUMP


def phase_header(
    phase: int, steps: int, peak: float, device: torch.device, count: ParameterCount, model: ModelConfig
) -> str:
    rule = "  " + "─" * 57
    if model.is_moe:
        active = f"(top-{model.top_k} of {model.n_experts} experts)"
    else:
        active = "(Dense model)"
    lines = [
        "",
        "=" * 60,
        f"  PHASE {phase}  —  {PHASE_TITLES[phase]}",
        f"  Steps: {steps}  |  LR: {peak:g}  |  Device: {device}",
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


def jump_verdict(jump: float, to_phase: int) -> str:
    if not abs(jump) <= LARGEST_JUMP:
        return "❌ LARGE"
    return "✅ Small (normal)" if to_phase == 2 else "✅ TINY (success!)"


def boundary_summary(losses: dict[str, float], bytes_per_token: float) -> str:
    """The closing box. All losses are held-out, in fp32; jumps compare the same batches.

    A run that started in a later phase has no figures of those before.
    """
    bar = "═" * 59

    def line(label: str, name: str) -> list[str]:
        if name not in losses:
            return []
        bits = bits_per_byte(losses[name], bytes_per_token)
        return [f"  {label:<24}:  {losses[name]:.4f}   {bits:.3f} bits per byte"]

    def jump(label: str, to_phase: int) -> list[str]:
        jump = losses.get(f"jump{to_phase - 1}{to_phase}")
        return [] if jump is None else [f"  {label:<24}:  {abs(jump):.4f}  {jump_verdict(jump, to_phase)}"]

    return "\n".join(
        [
            "",
            "BOUNDARY SUMMARY  (held-out losses, fp32)",
            bar,
            *line("Phase 1 final loss", "phase1_final"),
            *line("Phase 2 first loss", "phase2_first"),
            *line("Phase 2 final loss", "phase2_final"),
            *jump("Phase 1→2 jump", 2),
            "",
            *line("Phase 3 first loss", "phase3_first"),
            *line("Phase 3 final loss", "phase3_final"),
            *jump("Phase 2→3 jump", 3),
            f"  {'Phase 3 total drop':<24}:  {losses['total_drop']:.4f}",
            bar,
        ]
    )
