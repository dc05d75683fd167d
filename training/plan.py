"""What a run will need, before it starts: geometry, parameters and memory of each phase.

Bytes per parameter in fp32: 4 weight, 4 gradient, 4 or 8 moments (Muon, AdamW); for its first steps
one per new parameter, which the liveness report watches (counted with the gradients). Gradients appear in the
backward pass as activations go, so the peak holds the larger of the two.
"""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from config import ModelConfig, TrainingConfig, UserError
from models import ParameterCount, count_parameters
from models.loss import tokens_per_chunk
from training.optimizer import moment_bytes

GB = 1e9
OUT_OF_MEMORY_ADVICE = (
    "out of memory. Lower --batch-size (4 in place of 8), or grow less: --scale-factor 1.5 --extra-layers 2. "
    "--plan shows what each phase needs (trials of --grow-when auto need more); the models of finished phases are safe"
)
PROCESS_BYTES = 0.4 * GB  # Python, torch and its threads
# In bf16 on a CPU, oneDNN keeps up to 1,024 compiled products, one for each number of rows that an
# expert happened to get: measured 1.5 GB at width 208 and 2.3 GB at 416.
ONEDNN_BYTES = 2 * GB


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes that one phase takes while it trains."""

    weights: float
    optimizer: float
    gradients: float
    activations: float
    process: float
    trial: float = 0.0  # the next phase beside this one, with `grow_when = "auto"`

    @property
    def peak(self) -> float:
        own = max(self.gradients, self.activations)
        return self.weights + self.optimizer + max(own, self.trial) + self.process


def phase_memory(
    model: ModelConfig, batch_size: int, device: torch.device, compute_dtype: torch.dtype | None
) -> PhaseMemory:
    """The memory of training one phase; see `activation_bytes` for its largest uncertainty."""
    n_params = count_parameters(model).total
    return PhaseMemory(
        weights=4 * n_params,
        optimizer=moment_bytes(model),
        gradients=4 * n_params,
        activations=activation_bytes(model, batch_size, device, compute_dtype) + (2 * n_params if compute_dtype else 0),
        process=PROCESS_BYTES + (ONEDNN_BYTES if device.type == "cpu" and compute_dtype and model.is_moe else 0),
    )


def activation_bytes(
    model: ModelConfig, batch_size: int, device: torch.device, compute_dtype: torch.dtype | None
) -> float:
    """What the backward pass needs of the forward pass, in bytes.

    Per token and layer, in multiples of d_model: two residuals in fp32; in the compute dtype the
    norm's output, q|k|v, turned q and k, attention's output twice, the second norm's output, and of
    the MLP 4 before and 4 after GELU; of an MoE that and its input and output, top_k times.
    """
    tokens = batch_size * model.context_length
    size = compute_dtype.itemsize if compute_dtype else 4
    mlp = 10 * model.top_k if model.is_moe else 8
    per_layer = tokens * model.d_model * (2 * 4 + (9 + mlp) * size)
    # Logits, their log-softmax and its gradient; the gradient of the tied embedding.
    chunk = min(tokens, tokens_per_chunk(device, model.d_model))
    head = (3 * 4 * chunk + 4 * model.d_model) * model.vocab_size
    return model.n_layers * per_layer + head


def available_bytes(device: torch.device) -> float:
    """Memory that a process may take on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    limits = [int(fields["MemAvailable"].split()[0]) * 1024]
    for limit in map(Path, ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        if limit.exists() and (text := limit.read_text().strip()).isdigit():
            limits.append(int(text))
    return min(limits)


@dataclass(frozen=True)
class Plan:
    """Geometry, parameters and memory of the three phases on a device with `available` bytes."""

    models: tuple[ModelConfig, ...]
    counts: tuple[ParameterCount, ...]
    memory: tuple[PhaseMemory, ...]
    compute_dtype: torch.dtype | None
    available: float
    advice: str  # empty where everything fits

    @property
    def peak(self) -> float:
        return max(memory.peak for memory in self.memory)

    def table(self) -> str:
        heads = ("total", "active", "weights", "optimizer", "gradients", "activations", "peak")
        lines = [f"{'Phase':<13}{'width × layers × heads':<23}" + "".join(f"{head:>12}" for head in heads)]
        names = ("1 Dense", "2 MoE", "3 Large MoE")
        for name, model, count, memory in zip(names, self.models, self.counts, self.memory):
            shape = f"{model.d_model} × {model.n_layers} × {model.n_heads}"
            sizes = (memory.weights, memory.optimizer, memory.gradients, memory.activations, memory.peak)
            cells = [f"{n / 1e6:.2f} M" for n in (count.total, count.active)] + [f"{n / GB:.2f} GB" for n in sizes]
            lines.append(f"{name:<13}{shape:<23}" + "".join(f"{cell:>12}" for cell in cells))
        lines.append(
            f"Vocabulary {self.models[0].vocab_size:,}, precision {'bf16' if self.compute_dtype else 'fp32'}. "
            f"Needed at the peak: {self.peak / GB:.1f} GB; this device has {self.available / GB:.1f} GB free"
        )
        return "\n".join(lines + ([self.advice] if self.advice else []))


def memory_of_phases(
    config: TrainingConfig, vocab_size: int, device: torch.device, compute_dtype: torch.dtype | None
) -> tuple[PhaseMemory, ...]:
    """The memory of all three phases, what growth adds included."""
    models = config.phase_geometries(vocab_size)
    memory = [phase_memory(model, config.batch_size, device, compute_dtype) for model in models]
    counts = [count_parameters(model).total for model in models]
    for phase in (1, 2):
        watched = counts[phase] - counts[phase - 1]
        memory[phase] = dataclasses.replace(memory[phase], gradients=memory[phase].gradients + watched)
    if config.grow_when == "auto":
        for phase in (0, 1):
            trial = memory[phase + 1].peak - PROCESS_BYTES
            memory[phase] = dataclasses.replace(memory[phase], trial=trial)
    return tuple(memory)


def make_plan(config: TrainingConfig, vocab_size: int, device: torch.device, compute_dtype: torch.dtype | None) -> Plan:
    """Predicts a run's memory, and says what to change where it will not fit."""
    models = config.phase_geometries(vocab_size)
    counts = tuple(count_parameters(model) for model in models)
    memory = memory_of_phases(config, vocab_size, device, compute_dtype)
    available = available_bytes(device)
    advice = ""
    too_large = [number for number, m in enumerate(memory, 1) if m.peak > available]
    if too_large:
        advice = f"Phase {too_large[0]} will not fit. {way_out(config, vocab_size, available, device, compute_dtype)}"
    return Plan(models, counts, memory, compute_dtype, available, advice)


def way_out(
    config: TrainingConfig, vocab_size: int, available: float, device: torch.device, compute_dtype: torch.dtype | None
) -> str:
    """The first of the card's ways out of an out-of-memory that fits, with its number."""
    batches = {"batch_size": max(1, config.batch_size // 2)}
    smaller = {"scale_factor": 1.5, "extra_layers": 2}
    for change in (batches, smaller, {**batches, **smaller}, {**batches, "scale_factor": 1.0, "extra_layers": 1}):
        try:
            memory = memory_of_phases(dataclasses.replace(config, **change), vocab_size, device, compute_dtype)
        except UserError:  # 1.5 gives no whole number of heads here
            continue
        need = max(phase.peak for phase in memory)
        if need <= available:
            flags = " ".join(f"--{name.replace('_', '-')} {value:g}" for name, value in change.items())
            return f"{flags} needs {need / GB:.1f} GB and fits"
    return "Neither a smaller batch nor less growth fits: lower --d-model or --n-layers, or take --preset tiny"


def require_memory(plan: Plan, ignore: bool) -> None:
    """Raises UserError where the plan does not fit, before anything has been trained."""
    if plan.advice and not ignore:
        raise UserError(
            f"{plan.advice}. Needed at the peak: {plan.peak / GB:.1f} GB, this device has {plan.available / GB:.1f} GB; "
            f"--plan shows each phase, --ignore-memory-plan tries all the same"
        )


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """CUDA has its own exception; MPS and the CPU's allocator say it in words."""
    words = ("MPS backend out of memory", "DefaultCPUAllocator")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in words)
