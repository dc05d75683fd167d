"""The growth study's results file, read and checked: rows by arm, seed and budget.

Only annealed losses count, those where the learning rate has fallen to zero; the others show the way there.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.growth_study.arms import ARMS
from config import UserError

RESULTS = Path(__file__).parents[1] / "results" / "growth_study.json"
SCRATCH, OURS, AUTO = "target from scratch", "ours", "ours, auto"
SMALL_MOE, MIDDLE = "small MoE continued", "middle size from scratch"
FIXED = (SCRATCH, MIDDLE, SMALL_MOE)


@dataclass(frozen=True)
class Row:
    """One measurement: counted FLOPs, seconds of one thread, held-out loss in nats a token.

    `budget` is in FLOPs; None on the way to one. The `loss` of a run that diverged is infinite.
    """

    arm: str
    seed: int
    budget: float | None
    flops: float
    seconds: float
    loss: float
    steps: int
    width: int
    machine: str


NUMBER = (int, float)
KINDS = {
    "arm": str, "seed": int, "budget": (*NUMBER, type(None)), "flops": NUMBER, "seconds": NUMBER, "loss": NUMBER,
    "steps": int, "width": int, "machine": str,
}  # fmt: skip


@dataclass
class Study:
    """The rows by arm: annealed ones by (seed, budget), those on the way by seed in the order of training."""

    annealed: dict[str, dict[tuple[int, float], Row]] = field(default_factory=dict)
    curves: dict[str, dict[int, list[Row]]] = field(default_factory=dict)

    def at(self, arm: str, budget: float) -> dict[int, Row]:
        """The arm's annealed rows at one budget, by seed."""
        return {seed: row for (seed, b), row in self.annealed.get(arm, {}).items() if b == budget}

    def losses(self, arm: str, budget: float) -> list[float]:
        return [row.loss for row in self.at(arm, budget).values()]

    def budgets(self, *arms: str) -> list[float]:
        """All budgets that one of the arms has, ascending."""
        return sorted({budget for arm in arms for _, budget in self.annealed.get(arm, {})})

    @property
    def timed_on(self) -> str:
        """The scratch run's machine. Seconds of others are not comparable, and are left out."""
        return next(iter(self.annealed[SCRATCH].values())).machine

    def is_comparable(self, rows: Iterable[Row], cost: str) -> bool:
        """Whether the rows' `cost`, "flops" or "seconds", can stand beside the scratch run's."""
        return cost == "flops" or all(row.machine == self.timed_on for row in rows)

    @property
    def machines(self) -> list[str]:
        """All that the rows are from, the one that counts for seconds first."""
        rows = [row for by_seed in self.annealed.values() for row in by_seed.values()]
        return list(dict.fromkeys([self.timed_on, *(row.machine for row in rows)]))

    @property
    def arms(self) -> list[str]:
        """In the order of the study."""
        return sorted(self.annealed, key=list(ARMS).index)


def read_study(path: Path) -> Study:
    """Reads and checks the results.

    Raises:
        UserError: the file cannot be read, is no results file, or holds too little to compare.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; python -m benchmarks.growth_study writes it") from error
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    if not (isinstance(content, dict) and isinstance(content.get("rows"), list)):
        raise UserError(f"{path} holds no rows; python -m benchmarks.growth_study writes such a file")
    study = Study()
    for number, values in enumerate(content["rows"], start=1):
        try:
            add_row(study, values)
        except UserError as error:
            raise UserError(f"{path}, row {number}: {error}") from error
    check_reference(study, path)
    return study


def add_row(study: Study, values: dict) -> None:
    """Raises UserError for a row that is not as the study writes it, or that is there already."""
    if not isinstance(values, dict) or set(values) != set(KINDS):
        given = json.dumps(list(values) if isinstance(values, dict) else values)
        raise UserError(f"the columns are {given}; they have to be {json.dumps(list(KINDS))}")
    for name, kind in KINDS.items():
        if not isinstance(values[name], kind):
            raise UserError(f"{name} is {json.dumps(values[name])}")
    row = Row(**values)
    if row.arm not in ARMS:
        raise UserError(f"arm is {row.arm!r}; the study's are: {', '.join(ARMS)}")
    if not math.isfinite(row.loss):
        # Unlike nan, infinity compares: a run that diverged is worse than all others.
        row = dataclasses.replace(row, loss=math.inf)
    if row.budget is None:
        study.curves.setdefault(row.arm, {}).setdefault(row.seed, []).append(row)
        return
    for name in ("budget", "flops", "seconds"):
        if not 0 < getattr(row, name) < math.inf:
            raise UserError(f"{name} is {getattr(row, name)}, must be more than 0")
    if (row.seed, row.budget) in study.annealed.setdefault(row.arm, {}):
        raise UserError(
            f"arm {row.arm!r}, seed {row.seed}, budget {row.budget:g} is there twice; keep one study a file"
        )
    study.annealed[row.arm][row.seed, row.budget] = row


def check_reference(study: Study, path: Path) -> None:
    """Raises UserError unless the scratch run, to which all is compared, can serve as that."""
    if SCRATCH not in study.annealed:
        raise UserError(f"{path} has no annealed rows of the arm {SCRATCH!r}, to which the others are compared")
    machines = {row.machine for row in study.annealed[SCRATCH].values()}
    if len(machines) > 1:
        raise UserError(f"{path}: {SCRATCH!r} is from several machines, so its seconds are not comparable: {machines}")
    for budget in study.budgets(SCRATCH):
        if not all(map(math.isfinite, study.losses(SCRATCH, budget))):
            raise UserError(f"{path}: {SCRATCH!r} diverged, so nothing can be compared to it")


def tflop(flops: float) -> str:
    return f"{flops / 1e12:g} TFLOP"


def nats(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"
