"""What a run prints: phase headers and the closing boundary summary."""

from __future__ import annotations

import torch

from config import ModelConfig
from models import ParameterCount

PHASE_NAMES = {1: "Dense Model", 2: "Mixture of Experts (Upcycling)", 3: "Large MoE (Bilateral Growth)"}
# Nats; the card's own limits.
NORMAL_JUMP = {2: 0.05, 3: 0.001}


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
        f"  PHASE {phase}  —  {PHASE_NAMES[phase]}",
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
    if not abs(jump) < NORMAL_JUMP[to_phase]:
        return "❌ LARGE"
    return "✅ Small (normal)" if to_phase == 2 else "✅ TINY (success!)"


def boundary_summary(losses: dict[str, float]) -> str:
    """The closing box. All losses are held-out, in fp32; jumps compare the same batches."""
    bar = "═" * 59
    total_drop = losses["phase3_first"] - losses["phase3_final"]
    return "\n".join(
        [
            "",
            "BOUNDARY SUMMARY  (held-out losses, fp32)",
            bar,
            f"  Phase 1 final loss      :  {losses['phase1_final']:.4f}",
            f"  Phase 2 first loss      :  {losses['phase2_first']:.4f}",
            f"  Phase 2 final loss      :  {losses['phase2_final']:.4f}",
            f"  Phase 1→2 jump          :  {abs(losses['jump12']):.4f}  {jump_verdict(losses['jump12'], 2)}",
            "",
            f"  Phase 3 first loss      :  {losses['phase3_first']:.4f}",
            f"  Phase 3 final loss      :  {losses['phase3_final']:.4f}",
            f"  Phase 2→3 jump          :  {abs(losses['jump23']):.4f}  {jump_verdict(losses['jump23'], 3)}",
            f"  Phase 3 total drop      :  {total_drop:.4f}",
            bar,
        ]
    )
