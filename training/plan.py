"""What a run will need, before it starts: geometry, parameters and memory of each phase; and what to change where that
does not fit."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from config import ModelConfig, TrainingConfig, UserError
from models import ParameterCount, count_parameters
from phases import PHASES
from training.machine import GB, Machine
from training.memory import PROCESS_BYTES, PhaseMemory, boundary_memory, phase_memory


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
