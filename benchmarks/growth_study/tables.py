"""The study's two tables in Markdown, from its rows alone: growth by budget, and every arm's loss.

Differences are taken on the seeds that both arms have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from benchmarks.growth_study.comparison import Reach, behind_fixed, best_fixed, reach_scratch
from benchmarks.growth_study.results import AUTO, FIXED, OURS, SCRATCH, Study, nats, tflop


def difference(loss: float) -> str:
    # Rounded, and zero added, so that no -0.000 is printed.
    return f"{round(loss, 3) + 0.0:+.3f}" if math.isfinite(loss) else "diverged"


def spread(values: list[float], show: Callable[[float], str]) -> str:
    """Mean ± half the range; the mean alone where there is one value, or one that is not finite."""
    half_range = (max(values) - min(values)) / 2
    return show(fmean(values)) + (f" ± {half_range:.3f}" if len(values) > 1 and math.isfinite(half_range) else "")


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def margin(study: Study, arm: str, budget: float) -> str:
    """The arm minus the best fixed size: the mean, and by seed; a dash where they share no seed."""
    by_seed = behind_fixed(study, arm, budget)
    if not by_seed:
        return "–"
    seeds = ", ".join(f"{seed}: {difference(value)}" for seed, value in by_seed.items())
    return f"{difference(fmean(by_seed.values()))} ({seeds})"


def reach_cell(reached: list[Reach]) -> str:
    """The seeds' means, and in brackets the cheapest and the dearest seed."""
    if not reached:
        return "–"
    middle, low, high = (str(each) for each in (reached[0], min(reached[1:]), max(reached[1:])))
    if low == high == middle:
        return middle
    return f"{middle} ({low.removesuffix(' %')} to {high.removesuffix(' %')})"


def budget_table(study: Study) -> str:
    """At each budget: the best fixed size, what growth is behind it, and what growth pays for the target's loss."""
    rows = []
    for budget in study.budgets(SCRATCH):
        best = best_fixed(study, budget)
        reached = [reach_cell(reach_scratch(study, OURS, budget, cost)) for cost in ("flops", "seconds")]
        rows.append(
            [
                tflop(budget),
                f"{best}, {spread(study.losses(best, budget), nats)}",
                *(margin(study, arm, budget) for arm in (OURS, AUTO)),
                spread(study.losses(SCRATCH, budget), nats),
                *reached,
            ]
        )
    behind = [f"{arm} minus it, by seed" for arm in (OURS, AUTO)]
    needed = [f"ours has that with, of its {cost}" for cost in ("FLOPs", "seconds")]
    return table(["budget", "the best fixed size", *behind, SCRATCH, *needed], rows)


def loss_cell(study: Study, arm: str, budget: float) -> str:
    losses = study.losses(arm, budget)
    if not losses:
        return "–"
    by_seed = behind_fixed(study, arm, budget)
    is_compared = arm not in FIXED and by_seed and all(map(math.isfinite, losses))
    return spread(losses, nats) + (f" ({difference(fmean(by_seed.values()))})" if is_compared else "")


def seed_counts(study: Study, arm: str) -> str:
    counts = {len(study.at(arm, budget)) for budget in study.budgets(arm)}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)}))


def loss_table(study: Study) -> str:
    budgets = study.budgets(*study.arms)
    rows = [[arm, seed_counts(study, arm), *(loss_cell(study, arm, b) for b in budgets)] for arm in study.arms]
    return table(["arm", "seeds", *map(tflop, budgets)], rows)


def machines(study: Study) -> str:
    others = "".join(f" Without seconds, beside it: {machine}." for machine in study.machines[1:])
    return f"Machine: {study.timed_on}.{others}"


def tables(study: Study) -> str:
    """Both tables in Markdown, without a newline at the end."""
    parts = [
        "### By budget\n\n"
        "Differences are in nats a token, on the same seeds; below zero, growth is better. What ours needs for the "
        "target's loss is a share of what the target from scratch needed: for the seeds' means, and in brackets the "
        "cheapest to the dearest seed. Between budgets the logarithm of the cost is taken as linear in the loss. `<`: "
        "the shortest budget is better already; not reached: the longest is still worse.",
        budget_table(study),
        "### Every arm\n\n"
        "Held-out loss in nats a token at the end of training: mean over seeds ± half the range, and in brackets the "
        "difference to the best fixed size on the same seeds.",
        loss_table(study),
    ]
    return "\n\n".join([*parts, machines(study)])
