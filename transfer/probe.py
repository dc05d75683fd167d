"""What a model computes on a few tokens, module by module: the raw material of the growth checks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models import Transformer, exact_arithmetic

PROBE_BATCH, PROBE_TOKENS = 2, 64


@dataclass
class Trace:
    """Activations of one forward pass, one list entry per block.

    Shapes: `attention_inputs`, `router_inputs` and `residuals` (batch, time, d_model);
    `embedded` likewise; `router_logits` (batch · time, n_experts); `logits` (batch, time, vocab).
    Of a dense model's routers: none.
    """

    embedded: Tensor | None = None
    attention_inputs: list[Tensor] = field(default_factory=list)
    router_inputs: list[Tensor] = field(default_factory=list)
    router_logits: list[Tensor] = field(default_factory=list)
    residuals: list[Tensor] = field(default_factory=list)
    logits: Tensor | None = None


def probe_tokens(model: Transformer) -> Tensor:
    """Fixed pseudo-random tokens, int64 (2, ≤ 65), for checks that are called without any."""
    config = model.config
    length = min(PROBE_TOKENS, config.context_length) + 1
    generator = torch.Generator().manual_seed(0)
    return torch.randint(config.vocab_size, (PROBE_BATCH, length), generator=generator).to(model.device)


@torch.no_grad()
def trace(model: Transformer, tokens_BT: Tensor) -> Trace:
    """Runs the model on tokens (batch, time + 1) as the loss would, without the last one."""
    result = Trace()
    handles = [model.embedding.register_forward_hook(lambda _m, _i, out: setattr(result, "embedded", out))]

    def keep(store: list[Tensor], pick: Callable = lambda output: output):
        return lambda _module, _inputs, output: store.append(pick(output))

    for block in model.blocks:
        handles.append(block.attention_norm.register_forward_hook(keep(result.attention_inputs)))
        handles.append(block.register_forward_hook(keep(result.residuals, lambda output: output[0])))
        if model.config.is_moe:
            handles.append(block.mlp_norm.register_forward_hook(keep(result.router_inputs)))
            handles.append(block.mlp.router.register_forward_hook(keep(result.router_logits)))
    try:
        with exact_arithmetic(model):
            result.logits = model(tokens_BT[:, :-1])
    finally:
        for handle in handles:
            handle.remove()
    return result
