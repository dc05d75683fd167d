"""Bytes that training a phase takes, and crossing a boundary.

Bytes per parameter in fp32, full memory: 4 weight, 4 gradient, 4 or 8 moments (Muon, AdamW). Gradients appear
in the backward pass as activations go, so on a GPU the peak holds the larger of the two. On a CPU it holds both: what
activations leave free is in pieces into which no gradient fits. Lean memory: 3 of a matrix's weight and 4 of any
other, 1 or 8 moments, and the gradients of one layer beside the activations.

Several ranks divide weights, moments, gradients and the batch among them; each has besides what FSDP makes whole
for the blocks that compute now (`gathered_bytes`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch

from config import ModelConfig
from models import Transformer, count_parameters
from models.loss import tokens_per_chunk
from training.machine import GB, Machine
from training.optimizer import is_matrix, moment_bytes

PROCESS_BYTES = 0.4 * GB  # Python, torch and its threads
# Of the largest matrix, or stack of experts, what is there beside it while it grows, or of its gradient while a check compares
# that one's rows.
ONE_AT_A_TIME = 1.3
# With lean memory, for each number of a matrix that Muon moves: its gradient, momentum and weight in fp32, and steps between.
MUON_BYTES = 21


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that one phase takes while it trains, or a boundary while the model grows, on each rank."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    process: float
    is_lean: bool = False
    into: int = 0  # of a boundary: the phase that it leads to
    adds_up: bool = True  # gradients and activations are there at once
    gathered: float = 0.0  # with several ranks: parameters and gradients that are whole at once

    @property
    def name(self) -> str:
        """Of a boundary."""
        return f"{self.into - 1}→{self.into} boundary"

    @property
    def peak(self) -> float:
        both = (self.gradients, self.activations)
        own = sum(both) if self.adds_up else max(both)
        return self.weights + self.optimizer + own + self.process + self.gathered


def phase_memory(model: ModelConfig, tokens: int, machine: Machine, is_lean: bool) -> PhaseMemory:
    """The memory of training one phase, `tokens` of a batch (or of each of its parts) at once, on each rank."""
    n_params, n_ranks = count_parameters(model).total, machine.n_ranks
    return PhaseMemory(
        weights=weight_bytes(model, is_lean) / n_ranks,
        optimizer=moment_bytes(model, is_lean) / n_ranks,
        gradients=lean_gradient_bytes(model, tokens, machine) if is_lean else 4 * n_params / n_ranks,
        activations=activation_bytes(model, tokens // n_ranks, machine.device, machine.compute_dtype, is_lean),
        process=PROCESS_BYTES,
        is_lean=is_lean,
        adds_up=is_lean or machine.device.type == "cpu",
        gathered=gathered_bytes(model) if n_ranks > 1 else 0.0,
    )


def boundary_memory(
    old: ModelConfig, new: ModelConfig, into: int, tokens: int, machine: Machine, is_lean: bool
) -> PhaseMemory:
    """The memory of crossing into the phase `into`, in fp32, `tokens` of a held-out batch at once.

    Both models and the old moments are there; with lean memory the new one's weights are split when the checks have
    passed. Beside them is either one matrix, or stack of experts, with what is made of
    it: its growth, noise, or the gradient in which a check compares clones; or a held-out batch on its way. The old
    model is gone before the moments grow, one by one: no more than the phase that follows.
    """
    weights = (weight_bytes(old, is_lean) + weight_bytes(new, is_lean=False)) / machine.n_ranks
    largest = 4 * max(new.d_model * new.d_hidden * max(new.n_experts, 1), new.vocab_size * new.d_model)
    return PhaseMemory(
        weights=weights,
        optimizer=moment_bytes(old, is_lean) / machine.n_ranks,
        gradients=ONE_AT_A_TIME * largest,
        activations=forward_bytes(new, tokens // machine.n_ranks, machine.device),
        process=PROCESS_BYTES,
        is_lean=is_lean,
        into=into,
        adds_up=False,
        gathered=gathered_bytes(new) if machine.n_ranks > 1 else 0.0,
    )


def forward_bytes(model: ModelConfig, tokens: int, device: torch.device) -> float:
    """What a forward pass without a backward pass takes, in bytes, in fp32.

    Of one layer, in multiples of d_model: residuals, norm, and of the MLP 4 before and 4 after GELU, with its input and
    output, top_k times where there are experts. Or, when the layers are done, logits and their softmax of a chunk.
    """
    copies = model.top_k if model.is_moe else 1
    layer = 4 * tokens * model.d_model * (4 + 10 * copies)
    if device.type == "mps":
        layer = max(layer, 2 * 4 * tokens * model.n_heads * model.context_length)
    return max(layer, 2 * 4 * min(tokens, tokens_per_chunk(device, is_trained=False)) * model.vocab_size)


def gathered_bytes(model: ModelConfig) -> float:
    """What is whole at once on a rank that shares its parameters, in bytes, fp32.

    The block that computes and the one that FSDP fetches ahead, and in the backward pass the gradients of one and
    the buffer that shares them out; of the embedding and an output matrix of its own the weights, the gradient and
    that buffer.
    """
    ends = (1 if model.tied else 2) * model.vocab_size * model.d_model
    block = (count_parameters(model).total - ends) / model.n_layers
    return 4 * (4 * block + 3 * ends)


def activation_bytes(
    model: ModelConfig, tokens: int, device: torch.device, compute_dtype: torch.dtype | None, is_lean: bool
) -> float:
    """What the backward pass needs of the forward pass, in bytes: of all layers, of the last norm (its input in fp32, and
    the gradient of its output), and of the loss or of the layer that it is at, whichever is larger: when it comes to the
    layers the logits are gone."""
    kept, passing = layer_bytes(model, tokens, device, compute_dtype, is_lean)
    size = compute_dtype.itemsize if compute_dtype else 4
    head = loss_bytes(model, tokens, device, size) + output_gradient_bytes(model)
    return model.n_layers * kept + (4 + size) * tokens * model.d_model + max(head, passing)


def layer_bytes(
    model: ModelConfig, tokens: int, device: torch.device, compute_dtype: torch.dtype | None, is_lean: bool
) -> tuple[float, float]:
    """What one layer keeps for its backward pass, and what that takes besides and frees again, in bytes.

    Per token, in multiples of d_model: two residuals in fp32; in the compute dtype the
    norm's output, q|k|v, turned q and k, attention's output twice, the second norm's output, where queries share
    them keys and values once for each, and of the MLP the hidden units before and after GELU, of SwiGLU gate, up,
    the turned gate and their product; of an MoE those (without the turned gate) and its output, top_k times. In a lower
    precision the rounded matrices of attention and of a dense MLP as well, and the router's input in fp32.

    With lean memory attention is computed again, up to its output; of an MoE its output alone is kept, and nothing of
    its router. Its matrices are bf16 already; in fp32 those of a dense MLP are copied.

    On MPS no fused attention can be trained: torch's composite one keeps q, k and v in fp32, its output once, and for
    each head the probabilities of every token over all tokens. Its backward pass makes two more of those.
    """
    size = compute_dtype.itemsize if compute_dtype else 4
    kv, hidden = 1 / model.queries_per_kv, model.hidden_ratio
    features, probabilities = tokens * model.d_model, 0
    # Of the norm before attention up to what attention gives.
    attention = (5 + 3 * kv + (2 if model.queries_per_kv > 1 else 0)) * size
    if device.type == "mps":
        attention, probabilities = 3 * 4 + 2 * size, 4 * tokens * model.n_heads * model.context_length
    mlp = (4 if model.is_llama else 2) * hidden
    if model.is_moe:
        mlp = model.top_k * (1 if is_lean else 1 + (3 if model.is_llama else 2) * hidden)
    is_copied = compute_dtype is None if is_lean else compute_dtype is not None
    matrix = size * model.d_model**2 if is_copied else 0
    of_attention = features * attention + probabilities + matrix * (2 + 2 * kv)
    of_mlp = features * (1 + mlp) * size
    if not model.is_moe:
        of_mlp += matrix * (3 if model.is_llama else 2) * hidden
    elif compute_dtype and not is_lean:
        of_mlp += 4 * features
    residuals = 2 * 4 * features
    if is_lean:
        return residuals + of_mlp, of_attention + 2 * probabilities
    return residuals + of_attention + of_mlp, 2 * probabilities


def loss_bytes(model: ModelConfig, tokens: int, device: torch.device, size: int) -> float:
    """What the loss takes and frees, in bytes: logits and their softmax of a chunk of tokens, and the output matrix in a
    lower compute dtype; `size` is that dtype's."""
    rounded = model.d_model if size < 4 else 0
    return size * (2 * min(tokens, tokens_per_chunk(device)) + rounded) * model.vocab_size


def output_gradient_bytes(model: ModelConfig) -> float:
    """The gradient of the output matrix, in bytes, fp32: the loss makes it, before all others."""
    return 4 * model.d_model * model.vocab_size


def lean_gradient_bytes(model: ModelConfig, tokens: int, machine: Machine) -> float:
    """Gradients that exist at once with lean memory, in bytes, beyond what the loss has taken and freed before.

    Those of one layer's two largest matrices in bf16, what Muon makes of one expert's matrix, and that of an input
    embedding of its own.
    """
    matrix = model.d_model * (2 if model.is_llama else 1) * model.d_hidden
    layer = (2 * 2 * max(model.n_experts, 1) + MUON_BYTES) * matrix
    size = machine.compute_dtype.itemsize if machine.compute_dtype else 4
    freed = loss_bytes(model, tokens, machine.device, size)
    return max(0.0, layer - freed) + (0 if model.tied else output_gradient_bytes(model))


@lru_cache
def weight_bytes(model: ModelConfig, is_lean: bool) -> int:
    """Bytes of the weights: 4 each, or with lean memory 3 of those that Muon moves (models/lean.py)."""
    with torch.device("meta"):
        parameters = Transformer(model).named_parameters()
    return sum(parameter.numel() * (3 if is_lean and is_matrix(name) else 4) for name, parameter in parameters)
