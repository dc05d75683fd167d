"""A model with its optimizers, one training step a call, and where the step's time goes."""

from __future__ import annotations

import time
from itertools import pairwise

import torch
from torch import Tensor

from benchmarks.measuring import synchronise
from config import ModelConfig, TrainingConfig
from models import Transformer
from training.step import prepare_training, train_step

RATE = 1e-3


class Trainee:
    """A new model on one batch. A call is one whole step: forward, loss, backward, clipping, optimizers.

    Args:
        tokens_BT: int64, one longer than the context, on the device where the model is made.
        dtype: in which it computes; its weights are fp32, as in training.
    """

    def __init__(
        self,
        config: ModelConfig,
        tokens_BT: Tensor,
        settings: TrainingConfig,
        dtype: torch.dtype,
        is_lean: bool = False,
    ):
        device = tokens_BT.device
        self.model = Transformer.empty(config, device).initialise(torch.Generator(device).manual_seed(0))
        compute_dtype = None if dtype == torch.float32 else dtype
        self.optimizers = prepare_training(self.model, settings, compute_dtype, is_lean)
        self.tokens_BT, self.settings = tokens_BT, settings

    def __call__(self) -> None:
        train_step(self.model, self.optimizers, self.tokens_BT, RATE, self.settings)


def parts_of_step(trainee: Trainee, device: torch.device) -> dict[str, float]:
    """Seconds of the parts of one step.

    The loss head is what lies between the last norm's output and the gradient of it: ours computes its
    gradients together with the loss. The backward pass is that of the blocks, with clipping; with lean
    memory Muon is part of it.
    """
    marks = []

    def mark(*_) -> None:
        synchronise(device)
        marks.append(time.perf_counter())

    def after_forward(_module, _inputs, hidden: Tensor) -> None:
        mark()
        hidden.register_hook(mark)

    hooks = [
        trainee.model.final_norm.register_forward_hook(after_forward),
        trainee.optimizers[0].register_step_pre_hook(mark),
    ]
    mark()
    trainee()
    mark()
    for hook in hooks:
        hook.remove()
    names = ("forward", "loss head", "backward", "optimizer")
    return {name: after - before for name, (before, after) in zip(names, pairwise(marks), strict=True)}
