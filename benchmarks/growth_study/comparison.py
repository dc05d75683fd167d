"""Comparing arms of the growth study: what a loss costs, and differences on equal seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from benchmarks.growth_study.results import FIXED, SCRATCH, Row, Study


@dataclass(frozen=True, order=True)
class Reach:
    """Cost to reach a loss as a share of another run's cost; ordered from cheap to dear.

    `bound` is -1 where the share is only an upper bound, 1 where the loss was not reached, else 0.
    """

    bound: int
    share: float

    def __str__(self) -> str:
        return {-1: "< ", 0: ""}[self.bound] + f"{100 * self.share:.0f} %" if self.bound < 1 else "not reached"


def reach(points: list[tuple[float, float]], target: float, whole: float) -> Reach:
    """Where the loss first falls to `target`, between annealed runs: log cost is linear in loss; no extrapolation.

    `points` are (cost, loss), ascending in cost; `whole` is the cost that counts as 1.
    """
    points = [point for point in points if math.isfinite(point[1])]
    for i, (cost, loss) in enumerate(points):
        if loss > target:
            continue
        if i == 0:
            return Reach(0 if loss == target else -1, cost / whole)
        cost_before, loss_before = points[i - 1]
        part = (loss_before - target) / (loss_before - loss)
        return Reach(0, cost_before * (cost / cost_before) ** part / whole)
    return Reach(1, math.inf)


def reach_scratch(study: Study, arm: str, budget: float, cost: str) -> list[Reach]:
    """How the arm reaches the scratch run's loss at `budget`: the means of the seeds first, then each seed alone.

    `cost` is "flops" or "seconds"; for seconds, only budgets that were run on the scratch run's machine count. Of the
    seeds that the scratch run has at `budget`, those are taken for which the arm has a run as long, or the longest of
    its own. Of the arm's budgets, those count that all of these seeds have. Empty where none is left.
    """
    scratch, budgets = study.at(SCRATCH, budget), study.budgets(arm)
    last = min((b for b in budgets if b >= budget), default=max(budgets, default=budget))
    seeds = sorted(scratch.keys() & study.at(arm, last).keys())
    runs = [rows for rows in (study.at(arm, b) for b in budgets) if rows.keys() >= set(seeds)]
    runs = [rows for rows in runs if study.is_comparable((rows[seed] for seed in seeds), cost)]
    if not seeds or not runs:
        return []

    def mean(rows: list[Row]) -> tuple[float, float]:
        return fmean(getattr(row, cost) for row in rows), fmean(row.loss for row in rows)

    reached = []
    for group in (seeds, *([seed] for seed in seeds)):
        whole, target = mean([scratch[seed] for seed in group])
        points = [mean([rows[seed] for seed in group]) for rows in runs]
        reached.append(reach(sorted(points), target, whole))
    return reached


def differences(study: Study, arm: str, reference: str, budget: float) -> dict[int, float]:
    """Loss of `arm` minus that of `reference`, by seed, for the seeds that both have."""
    rows, references = study.at(arm, budget), study.at(reference, budget)
    return {seed: rows[seed].loss - references[seed].loss for seed in sorted(rows.keys() & references.keys())}


def best_fixed(study: Study, budget: float) -> str:
    """The fixed size with the lowest mean loss at `budget`; "" where none was trained so long."""
    fixed = [arm for arm in FIXED if study.at(arm, budget)]
    return min(fixed, key=lambda arm: fmean(study.losses(arm, budget)), default="")


def behind_fixed(study: Study, arm: str, budget: float) -> dict[int, float]:
    """Loss of `arm` minus that of the best fixed size at `budget`, by seed."""
    return differences(study, arm, best_fixed(study, budget), budget)
