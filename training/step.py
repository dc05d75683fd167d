"""One step of training, and what has to be set before the first."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from config import ModelConfig, TrainingConfig
from models import Routing, Transformer, next_token_loss, router_loss
from models.lean import keep_weights
from models.shards import whole
from training.bad_steps import is_sound
from training.optimizer import build_optimizers, set_learning_rate, take_if
from training.ranks import team


class LayerFigures(NamedTuple):
    """What the router of one layer did with a whole batch; the losses are scalars without a gradient."""

    slots_per_expert_E: Tensor  # int64
    load_balancing_loss: Tensor
    z_loss: Tensor


def prepare_training(
    model: Transformer, config: TrainingConfig, compute_dtype: torch.dtype | None, is_lean: bool
) -> list[torch.optim.Optimizer]:
    """Sets how the model computes, and returns its optimizers.

    Lean memory keeps no hidden units of experts, no gradients of matrices, these in three bytes and momentum in one.
    """
    keep_weights(model, in_two_parts=is_lean)
    model.compute_dtype = compute_dtype
    model.keep_hidden(not is_lean)
    tokens = config.batch_size * model.config.context_length
    return build_optimizers(model, config.weight_decay, tokens, config.grad_clip if is_lean else None)


def train_step(
    model: Transformer,
    optimizers: list[torch.optim.Optimizer],
    tokens_BT: Tensor,
    rate: float,
    config: TrainingConfig,
) -> tuple[Tensor, list[LayerFigures], Tensor]:
    """Moves the model by one batch, in `config.accumulate` parts whose gradients add up; see training/bad_steps.py.

    Args:
        tokens_BT: this process's rows of the batch. Where there are several, FSDP averages their gradients.
    Returns:
        The language-model loss in nats a token, what the routers did, and the norm of the gradient before clipping,
        all of the whole batch: tensors on the device, which nobody has waited for.
    """
    muon, adamw = optimizers
    set_learning_rate(optimizers, rate)

    losses, routings, parts = [], [], tokens_BT.chunk(config.accumulate)
    slots_of_batch = slots_of(model, parts) if counts_first(model.config, config) else []
    shares = [len(part_BT) / len(tokens_BT) for part_BT in parts]
    for part_BT, share in zip(parts, shares):
        # Forward: the language-model loss, and how the routers have shared out the tokens.
        own_loss, own_routing = next_token_loss(model, part_BT)
        part_loss, part_routing = team().over_all(own_loss, own_routing)
        # Each part's balance loss has the counts of the whole batch: it is linear in the mean probabilities.
        routing = [
            of_part._replace(slots_per_expert_E=slots_E) for of_part, slots_E in zip(part_routing, slots_of_batch)
        ]
        routing = routing or part_routing
        # Backward. With lean memory matrices move meanwhile, each by its own gradient, if the loss is a number.
        take_if(torch.isfinite(part_loss), optimizers)
        total = own_loss + router_loss(routing, config.balance_weight, config.z_weight)
        (total * share).backward()
        losses.append(part_loss * share)
        routings.append(part_routing)
    loss = torch.stack(losses).sum()

    # Clip, by the norm of the whole gradient; and decide, on the device, whether this step is to be trusted.
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    grad_norm = whole(get_total_norm(gradients + muon.norms_in_backward))
    clip_grads_with_norm_(model.parameters(), config.grad_clip, grad_norm)
    take_if(is_sound(loss, grad_norm, config.grad_clip), optimizers)

    # Move the weights, Muon matrices and AdamW the rest, and forget the gradients.
    muon.end_step(grad_norm)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return loss, merged(routings, shares), grad_norm


def counts_first(model: ModelConfig, config: TrainingConfig) -> bool:
    """Whether a step counts how often experts are chosen before it trains, see `slots_of`."""
    return model.is_moe and config.accumulate > 1 and config.balance_weight > 0


@torch.no_grad()
def slots_of(model: Transformer, parts: tuple[Tensor, ...]) -> list[Tensor]:
    """How often each layer's experts are chosen in all parts of a batch, int64 (n_experts,).

    The balance loss of a batch is E · Σₑ fₑ Pₑ. Its Pₑ is a mean over parts, whose gradients add up; but each of those
    gradients needs fₑ, the counts of all parts, before the first backward pass. So there is a forward pass of the blocks
    more, a third of what they take, and nothing of it is kept.
    """
    by_part = [model.hidden(part_BT[:, :-1])[1] for part_BT in parts]
    model.rest()
    slots = [sum(routing.slots_per_expert_E for routing in layer) for layer in zip(*by_part)]
    own = [routing._replace(slots_per_expert_E=slots_E) for routing, slots_E in zip(by_part[0], slots)]
    _, of_all = team().over_all(torch.zeros((), device=model.device), own)
    return [routing.slots_per_expert_E for routing in of_all]


def merged(parts: list[list[Routing]], shares: list[float]) -> list[LayerFigures]:
    """The figures of each layer over all parts of a batch, of which they are such shares."""
    figures = []
    for layer in zip(*parts):
        probability_E, z_loss = (
            sum(share * getattr(routing, name).detach() for share, routing in zip(shares, layer))
            for name in ("probability_E", "z_loss")
        )
        whole_batch = Routing(sum(routing.slots_per_expert_E for routing in layer), probability_E, z_loss)
        figures.append(LayerFigures(whole_batch.slots_per_expert_E, whole_batch.load_balancing_loss, z_loss))
    return figures
