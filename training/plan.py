"""What a run will need, before it starts: geometry, parameters and memory of each phase; and where that does not fit,
what to change."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from config import PRESETS, ModelConfig, TrainingConfig, UserError
from models import ParameterCount, count_parameters
from phases import PHASES
from training.machine import GB, Machine
from training.memory import PhaseMemory, boundary_memory, phase_memory

TINY_VOCABULARY = 4_097  # of the tokenizer that the preset tiny takes


@dataclass(frozen=True)
class Plan:
    """Geometry, parameters and memory of each phase on a machine, and the memory of the larger boundary."""

    models: tuple[ModelConfig, ...]
    counts: tuple[ParameterCount, ...]
    memory: tuple[PhaseMemory, ...]  # of all phases, then of the boundary
    machine: Machine
    advice: str = ""  # empty where everything fits; else what does not, and what to change
    way: str = ""  # of the advice the flags with which it fits; empty where there are none

    @property
    def peak(self) -> float:
        return peak_of(self.memory)

    @property
    def is_refused(self) -> bool:
        """What does not fit at all; what does not fit well is a warning."""
        return self.peak > self.machine.most

    @property
    def is_lean(self) -> bool:
        return self.memory[0].is_lean

    def table(self) -> str:
        machine = self.machine
        heads = ("total", "active", "weights", "optimizer", "gradients", "activations", "peak")
        lines = [f"{'Phase':<13}{'width × layers × heads':<23}" + "".join(f"{head:>12}" for head in heads)]
        for phase, model, count, memory in zip(PHASES, self.models, self.counts, self.memory):
            shape = f"{model.d_model} × {model.n_layers} × {model.n_heads}"
            cells = [f"{n / 1e6:.2f} M" for n in (count.total, count.active)] + in_gb(memory)
            lines.append(f"{f'{phase.number} {phase.short}':<13}{shape:<23}" + "".join(f"{cell:>12}" for cell in cells))
        for memory in self.memory[len(self.models) :]:
            cells = ["", "", *in_gb(memory)]
            lines.append(f"{memory.name:<13}{'both models':<23}" + "".join(f"{cell:>12}" for cell in cells))
        lines.append(
            f"Vocabulary {self.models[0].vocab_size:,}, precision {'bf16' if machine.compute_dtype else 'fp32'}, "
            f"memory {'lean' if self.is_lean else 'full'}. "
            + (f"Each of {machine.n_ranks} ranks: " if machine.n_ranks > 1 else "")
            + f"Needed at the peak: {self.peak / GB:.1f} GB; {machine.in_words}"
        )
        return "\n".join(lines + textwrap.wrap(self.advice, 120, break_on_hyphens=False))


def in_gb(memory: PhaseMemory) -> list[str]:
    """The cells of a phase or a boundary in the plan's table."""
    sizes = (memory.weights, memory.optimizer, memory.gradients, memory.activations, memory.peak)
    return [f"{n / GB:.2f} GB" for n in sizes]


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


def make_plan(
    config: TrainingConfig,
    dense: ModelConfig,
    machine: Machine,
    may_change: Callable[[str], bool] = lambda name: True,
) -> Plan:
    """Predicts a run's memory, and says what to change where it will not fit, or only beyond a Mac's working set.

    Args:
        dense: the model of phase 1.
        may_change: whether a setting can still be another one.
    """
    models = config.geometries_from(dense)
    counts = tuple(count_parameters(model) for model in models)
    memory = choose_memory(config, dense, machine)
    plan = Plan(models, counts, memory, machine)
    if plan.peak <= machine.available:
        return plan
    limit = machine.most if plan.is_refused else machine.available
    first = next(f"The {m.name}" if m.into else f"Phase {n}" for n, m in enumerate(memory, 1) if m.peak > limit)
    fault = f"{first} will not fit." if plan.is_refused else f"{first} will run, slower, beyond this Mac's working set."
    way, text = way_out(config, dense, machine, may_change)
    return dataclasses.replace(plan, advice=f"{fault} {text}", way=way)


class Way(NamedTuple):
    """Settings with which a run takes less memory, and what that costs its user."""

    change: dict
    cost: str


def ways_out(config: TrainingConfig, n_ranks: int = 1) -> Iterator[Way]:
    """In the order of what they cost: nothing that is learnt, then tokens a step, then growth, then the whole model."""
    lean = {"memory": "lean", "accumulate": 1} if config.memory == "full" else {"accumulate": 1}
    lean = {} if n_ranks > 1 else lean
    yield Way(lean, "some speed, and nothing that is learnt")
    if config.memory != "lean":
        for n in (2, 4, 8):
            if config.batch_size % (n * config.accumulate * n_ranks) == 0:
                yield Way({"accumulate": n * config.accumulate}, "some speed, and nothing that is learnt")
    batches = halved_batches(config, n_ranks)
    for batch in batches:
        yield Way({**lean, **batch}, fewer_tokens(config, batch))
    if config.grow_when == "auto":  # which chooses one size anew for any other
        return
    for growth in smaller_growths(config):
        yield Way({**lean, **growth}, "a smaller phase 3")
        for batch in batches:
            yield Way({**lean, **batch, **growth}, f"a smaller phase 3, and {fewer_tokens(config, batch)}")
    if config.start_phase == 1:
        for width in (config.d_model // 2, config.d_model // 4):
            yield Way({**lean, "d_model": width - width % (2 * config.n_heads)}, "smaller models in all phases")
        yield Way({"preset": "tiny"}, "small models in all phases; give no other size beside it")


def halved_batches(config: TrainingConfig, n_ranks: int = 1) -> list[dict]:
    """The batch size halved, and halved again, as long as each rank has a row."""
    sizes, size = [], config.batch_size // 2 // n_ranks * n_ranks
    while size:
        sizes.append({"batch_size": size, **({"accumulate": 1} if config.accumulate > 1 else {})})
        size = size // 2 // n_ranks * n_ranks
    return sizes


def fewer_tokens(config: TrainingConfig, batch: dict) -> str:
    return f"{config.batch_size / batch['batch_size']:.3g} times fewer tokens a step: as many steps learn less"


def smaller_growths(config: TrainingConfig) -> list[dict]:
    """Less and less growth into phase 3, none of it more than the config's own."""
    return [
        {"scale_factor": min(scale, config.scale_factor), "extra_layers": min(layers, config.extra_layers)}
        for scale, layers in ((1.5, 2), (1.0, 1))
    ]


def way_out(
    config: TrainingConfig, dense: ModelConfig, machine: Machine, may_change: Callable[[str], bool]
) -> tuple[str, str]:
    """The flags of the first of `ways_out` that fits, and a sentence with what it needs and costs."""
    for way, cost in ways_out(config, machine.n_ranks):
        change = {name: value for name, value in way.items() if value != getattr(config, name)}
        if not change or not all(map(may_change, change)):
            continue
        try:
            peak = peak_of(choose_memory(*changed_run(config, dense, change), machine))
        except UserError:  # as where there is no whole number of heads
            continue
        if peak <= machine.available:
            flags = as_flags(change)
            return flags, f"{flags} needs {peak / GB:.1f} GB and fits; it costs {cost}"
    return "", "Nothing that can be changed fits: free memory, or lower --d-model and --n-layers in a new run"


def changed_run(config: TrainingConfig, dense: ModelConfig, change: dict) -> tuple[TrainingConfig, ModelConfig]:
    """The settings of a way out, and its model of phase 1. Raises UserError where they cannot be together."""
    if "preset" in change:
        preset = PRESETS[change["preset"]]
        return preset, preset.dense_geometry(TINY_VOCABULARY)
    changed = dataclasses.replace(config, **change)
    changed.validate()
    return changed, changed.dense_geometry(dense.vocab_size, dense.tokenizer) if "d_model" in change else dense


def peak_of(phases: tuple[PhaseMemory, ...]) -> float:
    return max(phase.peak for phase in phases)


def as_flags(settings: dict) -> str:
    return " ".join(f"--{name.replace('_', '-')} {value}" for name, value in settings.items())


def require_memory(plan: Plan, ignore: bool) -> None:
    """Raises UserError where the plan does not fit, before anything has been trained."""
    if plan.is_refused and not ignore:
        raise UserError(
            f"{plan.advice}. Needed at the peak: {plan.peak / GB:.1f} GB, {plan.machine.in_words}; "
            f"--plan shows each phase, --ignore-memory-plan tries all the same"
        )
