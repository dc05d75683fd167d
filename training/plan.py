"""What a run will need, before it starts: geometry, parameters and memory of each phase.

Bytes per parameter in fp32, full memory: 4 weight, 4 gradient, 4 or 8 moments (Muon, AdamW). Gradients appear
in the backward pass as activations go, so on a GPU the peak holds the larger of the two. On a CPU it holds both: what
activations leave free is in pieces into which no gradient fits. Lean memory: 3 of a matrix's weight and 4 of any other,
1 or 8 moments, and the gradients of one layer beside the activations.

Several ranks divide weights, moments, gradients and the batch among them; each has besides what FSDP makes whole
for the blocks that compute now (`gathered_bytes`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from config import ModelConfig, TrainingConfig, UserError
from models import ParameterCount, Transformer, count_parameters
from models.loss import tokens_per_chunk
from phases import PHASES
from training import torchrun
from training.optimizer import is_matrix, moment_bytes

GB = 1e9
PROCESS_BYTES = 0.4 * GB  # Python, torch and its threads
# Of the largest matrix, or stack of experts, what is there beside it while it grows, or of its gradient while a check compares
# that one's rows.
ONE_AT_A_TIME = 1.3
# With lean memory, for each number of a matrix that Muon moves: its gradient, momentum and weight in fp32, and steps between.
MUON_BYTES = 21


@dataclass(frozen=True)
class Machine:
    """What a run computes with: as many devices as ranks, each with `available` bytes.

    A `compute_dtype` of None is fp32.
    """

    device: torch.device
    compute_dtype: torch.dtype | None = None
    n_ranks: int = 1
    available: float = math.inf

    @classmethod
    def now(cls, device: torch.device, compute_dtype: torch.dtype | None, n_ranks: int = 1) -> Machine:
        """With what is free at this moment; ranks of one machine share its CPU's memory."""
        n_sharing = torchrun.planned_count_here() if device.type == "cpu" else 1
        return cls(device, compute_dtype, n_ranks, available_bytes(device) / n_sharing)


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that one phase takes while it trains, or a boundary while the model grows, on each rank."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    process: float
    trial: float = 0.0  # the next phase beside this one, with `grow_when = "auto"`
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
        return self.weights + self.optimizer + max(own, self.trial) + self.process + self.gathered


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
    return max(layer, 2 * 4 * min(tokens, tokens_per_chunk(device)) * model.vocab_size)


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


def weight_bytes(model: ModelConfig, is_lean: bool) -> int:
    """Bytes of the weights: 4 each, or with lean memory 3 of those that Muon moves (models/lean.py)."""
    with torch.device("meta"):
        parameters = Transformer(model).named_parameters()
    return sum(parameter.numel() * (3 if is_lean and is_matrix(name) else 4) for name, parameter in parameters)


def available_bytes(device: torch.device) -> float:
    """Memory that a process may take on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    limits = [psutil.virtual_memory().available]
    for limit in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text(encoding="utf-8").strip()).isdigit():
            limits.append(int(text))
    return min(limits)


@dataclass(frozen=True)
class Plan:
    """Geometry, parameters and memory of each phase on a machine, and the memory of the larger boundary."""

    models: tuple[ModelConfig, ...]
    counts: tuple[ParameterCount, ...]
    memory: tuple[PhaseMemory, ...]  # of all phases, then of the boundary
    machine: Machine
    advice: str  # empty where everything fits

    @property
    def peak(self) -> float:
        return peak_of(self.memory)

    @property
    def is_lean(self) -> bool:
        return self.memory[0].is_lean

    def table(self) -> str:
        machine = self.machine
        heads = ("total", "active", "weights", "optimizer", "gradients", "activations", "peak")
        lines = [f"{'Phase':<13}{'width × layers × heads':<23}" + "".join(f"{head:>12}" for head in heads)]
        for phase, model, count, memory in zip(PHASES, self.models, self.counts, self.memory):
            shape = f"{model.d_model} × {model.n_layers} × {model.n_heads}"
            sizes = (memory.weights, memory.optimizer, memory.gradients, memory.activations, memory.peak)
            cells = [f"{n / 1e6:.2f} M" for n in (count.total, count.active)] + [f"{n / GB:.2f} GB" for n in sizes]
            lines.append(f"{f'{phase.number} {phase.short}':<13}{shape:<23}" + "".join(f"{cell:>12}" for cell in cells))
        for memory in self.memory[len(self.models) :]:
            sizes = (memory.weights, memory.optimizer, memory.gradients, memory.activations, memory.peak)
            cells = ["", "", *(f"{n / GB:.2f} GB" for n in sizes)]
            lines.append(f"{memory.name:<13}{'both models':<23}" + "".join(f"{cell:>12}" for cell in cells))
        lines.append(
            f"Vocabulary {self.models[0].vocab_size:,}, precision {'bf16' if machine.compute_dtype else 'fp32'}, "
            f"memory {'lean' if self.is_lean else 'full'}. "
            + (f"Each of {machine.n_ranks} ranks: " if machine.n_ranks > 1 else "")
            + f"Needed at the peak: {self.peak / GB:.1f} GB; this device has {machine.available / GB:.1f} GB free"
        )
        return "\n".join(lines + ([self.advice] if self.advice else []))


def memory_of_phases(
    config: TrainingConfig, dense: ModelConfig, machine: Machine, is_lean: bool
) -> tuple[PhaseMemory, ...]:
    """The memory of all phases, what growth adds included, and of the larger boundary; `dense` is the first's model."""
    models = config.geometries_from(dense)
    tokens = -(-config.batch_size // config.accumulate) * config.context_length
    memory = [phase_memory(model, tokens, machine, is_lean) for model in models]
    counts = [count_parameters(model).total for model in models]
    for i in range(1, len(models)):
        # For its first steps the liveness report watches each new parameter with a bit.
        watched = (counts[i] - counts[i - 1]) / 8 / machine.n_ranks
        memory[i] = dataclasses.replace(memory[i], gradients=memory[i].gradients + watched)
        if config.grow_when == "auto":
            memory[i - 1] = dataclasses.replace(memory[i - 1], trial=memory[i].peak - PROCESS_BYTES)
    heldout = config.batch_size * config.context_length
    boundaries = [
        boundary_memory(models[i - 1], models[i], PHASES[i].number, heldout, machine, is_lean)
        for i in range(1, len(models))
    ]
    return (*memory, *sorted(boundaries, key=lambda boundary: boundary.peak)[-1:])


def choose_memory(config: TrainingConfig, dense: ModelConfig, machine: Machine) -> tuple[PhaseMemory, ...]:
    """The memory of all phases in the mode that the config names; for "auto" lean only where full does not fit."""
    modes = {"full": [False], "lean": [True], "auto": [False, True]}[config.memory]
    if config.accumulate > 1 or machine.n_ranks > 1:
        modes = [False]  # lean memory has nowhere to add up gradients, and frees what ranks share anyway
    for is_lean in modes:
        memory = memory_of_phases(config, dense, machine, is_lean)
        if peak_of(memory) <= machine.available:
            break
    return memory


def make_plan(config: TrainingConfig, dense: ModelConfig, machine: Machine) -> Plan:
    """Predicts a run's memory, and says what to change where it will not fit; `dense` is the model of phase 1."""
    models = config.geometries_from(dense)
    counts = tuple(count_parameters(model) for model in models)
    memory = choose_memory(config, dense, machine)
    too_large = [
        f"The {m.name}" if m.into else f"Phase {number}"
        for number, m in enumerate(memory, 1)
        if m.peak > machine.available
    ]
    advice = f"{too_large[0]} will not fit. {way_out(config, dense, machine)}" if too_large else ""
    return Plan(models, counts, memory, machine, advice)


def way_out(config: TrainingConfig, dense: ModelConfig, machine: Machine) -> str:
    """The first way out of an out-of-memory that fits, with its number."""
    n_ranks = machine.n_ranks
    lean = {} if config.memory == "lean" or n_ranks > 1 else {"memory": "lean", "accumulate": 1}
    batches = {"batch_size": max(1, config.batch_size // 2 // n_ranks) * n_ranks, "accumulate": 1}
    smaller = {"scale_factor": 1.5, "extra_layers": 2}
    ways = (batches, smaller, {**batches, **smaller}, {**batches, "scale_factor": 1.0, "extra_layers": 1})
    for way in (lean, *({**lean, **way} for way in ways)):
        change = {name: value for name, value in way.items() if value != getattr(config, name)}
        try:
            changed = dataclasses.replace(config, **change)
            memory = choose_memory(changed, dense, machine)
        except UserError:  # 1.5 gives no whole number of heads here
            continue
        if change and peak_of(memory) <= machine.available:
            return f"{as_flags(change)} needs {peak_of(memory) / GB:.1f} GB and fits"
    return "Neither a smaller batch nor less growth fits: lower --d-model or --n-layers, or take --preset tiny"


def peak_of(phases: tuple[PhaseMemory, ...]) -> float:
    return max(phase.peak for phase in phases)


def as_flags(settings: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def require_memory(plan: Plan, ignore: bool) -> None:
    """Raises UserError where the plan does not fit, before anything has been trained."""
    if plan.advice and not ignore:
        raise UserError(
            f"{plan.advice}. Needed at the peak: {plan.peak / GB:.1f} GB, "
            f"this device has {plan.machine.available / GB:.1f} GB; --plan shows each phase, "
            f"--ignore-memory-plan tries all the same"
        )
