"""Muon for the matrices inside the blocks; AdamW for embedding and output matrix, biases, norms and routers.

Measured in docs/RECIPE.md.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from config import ModelConfig
from models import Transformer
from models.lean import layers_in_parts
from training.muon import Muon
from transfer.optimizer_growth import Moments, narrowed, widened

# Learning rates are given for the matrices; the rest of the model takes these shares of them.
EMBEDDING_SHARE = 0.125
REST_SHARE = 0.25
# Adam's steps are of one size in each of the d_model features, so a logit moves d_model times as far: what makes
# logits, of tokens or of experts, takes a rate that falls with the width (Yang et al. 2022, table 3), from the width on
# at which it was tuned.
EMBEDDING_WIDTH = 256
# A router is what moves all tokens at once: at the others' rate experts ran empty.
ROUTER_SHARE = 0.05
ROUTER_WIDTH = 128
# A matrix moves once it has seen about so many tokens for each feature of its narrower side.
TOKENS_A_FEATURE = 2.95
# Momentum forgets half of a gradient in 13 steps: with longer turns much would be forgotten unseen.
LONGEST_PERIOD = 10


def build_optimizers(
    model: Transformer, weight_decay: float, tokens: int, lean_clip: float | None = None
) -> list[torch.optim.Optimizer]:
    """Muon and AdamW, which share out the parameters between them; weight decay for Muon's matrices alone.

    The learning rate is set before each step, from the schedule. An expert's falls with the root of its share of the
    tokens, as for a smaller batch.

    Args:
        tokens: of one step, on all ranks.
        lean_clip: a number trains with little memory: momentum in one byte, matrices moved and their gradients
            clipped in the backward pass (see `Muon.move_in_backward`).
    """
    fused, matrices, stacks, inputs, outputs, routers, rest = [], [], [], [], [], [], []
    output_matrix = "embedding" if model.config.tied else "unembedding"
    for name, parameter in model.named_parameters():
        if name.startswith(output_matrix):
            outputs.append(parameter)
        elif name.startswith("embedding"):
            inputs.append(parameter)
        elif "router" in name:
            routers.append(parameter)
        elif not is_matrix(name):
            rest.append(parameter)
        elif name.endswith("qkv.weight"):
            fused.append(parameter)
        else:
            (stacks if parameter.dim() > 2 else matrices).append(parameter)
    config = model.config
    of_matrices, of_experts = muon_periods(config, tokens)
    heads = {"n_heads": config.n_heads, "queries_per_kv": config.queries_per_kv}
    muon = Muon(
        [
            {"params": fused, **heads, "period": of_matrices, "share": 1.0},
            {"params": matrices, "period": of_matrices, "share": 1.0},
            {"params": stacks, "period": of_experts, "share": math.sqrt(tokens_share(config))},
        ],
        weight_decay,
        model.compute_dtype or model.embedding.weight.dtype,
        {layer.weight: layer.weight_low for layer in layers_in_parts(model) if layer.weight_low is not None},
        is_narrow=lean_clip is not None,
    )
    if lean_clip is not None:
        muon.move_in_backward(lean_clip)
    adamw = torch.optim.AdamW(
        [
            {"params": outputs, "share": EMBEDDING_SHARE * min(1.0, EMBEDDING_WIDTH / config.d_model)},
            {"params": inputs, "share": EMBEDDING_SHARE},
            {"params": routers, "share": ROUTER_SHARE * min(1.0, ROUTER_WIDTH / config.d_model)},
            {"params": rest, "share": REST_SHARE},
        ],
        lr=0.0, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True,
    )  # fmt: skip
    return [muon, adamw]


def muon_periods(config: ModelConfig, tokens: int) -> tuple[int, int]:
    """After how many steps of so many tokens a matrix, and an expert, has its turn: see `Muon`.

    To orthogonalise a matrix costs as much as some fixed number of tokens for each feature of its narrower side, so a
    period in proportion to d_model / tokens keeps the optimizer's share of a step the same at every width and
    batch. An expert sees top_k of n_experts tokens, and waits at least until it has seen as many as a matrix in one step.
    """
    share = tokens_share(config)
    due = TOKENS_A_FEATURE * config.d_model / tokens
    of_matrices, of_experts = (min(LONGEST_PERIOD, round(steps)) for steps in (due, due / share))
    return max(of_matrices, 1), max(of_experts, int(1 / share))


def tokens_share(config: ModelConfig) -> float:
    """Of all tokens those that an expert sees where all are used alike; 1 in a dense model."""
    return config.top_k / max(config.n_experts, config.top_k)


def is_matrix(name: str) -> bool:
    """Whether Muon moves the parameter. By name: the biases of stacked experts have two dimensions."""
    return name.endswith(("qkv.weight", "out.weight", "up.weight", "down.weight"))


@lru_cache
def moment_bytes(config: ModelConfig, is_lean: bool) -> int:
    """Bytes of the optimizers' state: one moment of a matrix, two in fp32 of everything else.

    With lean memory that moment is a byte, with a scale in fp32 for each row.
    """
    with torch.device("meta"):
        parameters = dict(Transformer(config).named_parameters())
    matrices = [parameters.pop(name) for name in list(parameters) if is_matrix(name)]
    rest = sum(8 * parameter.numel() for parameter in parameters.values())
    return rest + sum(m.numel() + 4 * m[..., 0].numel() if is_lean else 4 * m.numel() for m in matrices)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["share"]


def take_if(is_sound: Tensor, optimizers: list[torch.optim.Optimizer]) -> None:
    """The next step changes nothing unless `is_sound`, bool () on the device."""
    muon, adamw = optimizers
    muon.is_sound = is_sound
    adamw.found_inf = (~is_sound).float()  # as torch's GradScaler tells a fused optimizer


def read_moments(model: Transformer, optimizers: list[torch.optim.Optimizer]) -> Moments:
    """Each parameter's moments by its name: `momentum_buffer`, or `exp_avg`, `exp_avg_sq` and `step`."""
    by_parameter = {}
    for optimizer in optimizers:
        by_parameter.update(optimizer.state)
    return {name: dict(by_parameter.get(parameter, {})) for name, parameter in model.named_parameters()}


def write_moments(model: Transformer, optimizers: list[torch.optim.Optimizer], moments: Moments) -> None:
    """Gives each parameter the moments under its name; those without any begin afresh."""
    for name, parameter in model.named_parameters():
        if moments.get(name):
            owner = next(o for o in optimizers if any(parameter is p for g in o.param_groups for p in g["params"]))
            owner.state[parameter] = dict(moments[name])
            if isinstance(owner, Muon):
                owner.state[parameter] = (narrowed if owner.is_narrow else widened)(moments[name])
