"""The study's tables in Markdown, from its rows alone.

Only annealed losses count, those where the learning rate has fallen to zero. Seeds are compared in pairs: an arm with fewer
seeds than another is compared on those that both have.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import fmean

from benchmarks.growth_study.comparison import Reach, differences, reach_scratch
from benchmarks.growth_study.results import (
    ABLATION,
    AUTO,
    FIXED,
    OURS,
    SCRATCH,
    Study,
    nats,
    split_sweep,
    tflop,
)


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


def seed_counts(study: Study, arm: str) -> str:
    counts = {len(study.at(arm, budget)) for budget in study.budgets(arm)}
    return "–".join(str(count) for count in sorted({min(counts), max(counts)}))


def loss_table(study: Study) -> str:
    arms = study.arms
    budgets = study.budgets(*arms)
    cells = {(arm, b): spread(study.losses(arm, b), nats) if study.at(arm, b) else "–" for arm in arms for b in budgets}
    for budget in budgets:
        present = [arm for arm in arms if study.at(arm, budget)]
        # Arms whose means print alike are equally good.
        means = {arm: round(fmean(study.losses(arm, budget)), 3) for arm in present}
        best = min(means.values())
        for arm in present:
            if means[arm] == best:
                cells[arm, budget] = f"**{cells[arm, budget]}**"
    rows = [[arm, seed_counts(study, arm), *(cells[arm, b] for b in budgets)] for arm in arms]
    return table(["arm", "seeds", *map(tflop, budgets)], rows)


def reach_cell(reached: list[Reach]) -> str:
    """The seeds' means, and in brackets the cheapest and the dearest seed."""
    if not reached:
        return "–"
    middle, low, high = (str(each) for each in (reached[0], min(reached[1:]), max(reached[1:])))
    if low == high == middle:
        return middle
    return f"{middle} ({low.removesuffix(' %')} to {high.removesuffix(' %')})"


def reach_table(study: Study) -> str:
    header, reference = ["arm"], [SCRATCH]
    for budget in study.budgets(SCRATCH):
        runs = study.at(SCRATCH, budget).values()
        header += [f"loss {fmean(row.loss for row in runs):.3f}: {cost}" for cost in ("FLOPs", "seconds")]
        reference += [tflop(budget), f"{fmean(row.seconds for row in runs):.0f} s"]
    rows = [reference]
    for arm in study.arms:
        if arm != SCRATCH:
            rows.append([arm])
            for budget in study.budgets(SCRATCH):
                rows[-1] += [reach_cell(reach_scratch(study, arm, budget, cost)) for cost in ("flops", "seconds")]
    return table(header, rows)


def margin_cells(study: Study, arm: str, candidates: list[str], budget: float) -> list[str]:
    """The candidate that the arm beats by least, the arm minus it, and that for each seed; one has to share a seed."""
    margins = {other: differences(study, arm, other, budget) for other in candidates}
    margins = {other: by_seed for other, by_seed in margins.items() if by_seed}
    best = max(margins, key=lambda other: fmean(margins[other].values()))
    values = list(margins[best].values())
    return [
        best,
        spread(values, difference),
        ", ".join(f"{seed}: {difference(x)}" for seed, x in margins[best].items()),
    ]


def margin_table(study: Study) -> str:
    """Ours and "ours, auto" against the best fixed size, and ours against the best other way to grow."""
    fixed = [arm for arm in study.arms if arm in FIXED]
    growing = [arm for arm in study.arms if arm not in (*FIXED, OURS, AUTO)]
    rows = [
        [tflop(budget), arm, kind, *margin_cells(study, arm, candidates, budget)]
        for arm, kind, candidates in (
            (AUTO, "fixed size", fixed),
            (OURS, "fixed size", fixed),
            (OURS, "other way to grow", growing),
        )
        if arm in study.annealed
        for budget in study.budgets(arm)
        if any(differences(study, arm, other, budget) for other in candidates)
    ]
    return table(["budget", "arm", "against the best", "which is", "arm minus it", "by seed"], rows)


def compared_table(study: Study, labels: list[str], rows: list[tuple[list[str], str, str]]) -> str:
    """Loss and, in brackets, the difference to a reference. `rows` holds (labels, arm, reference)."""
    budgets, lines = study.budgets(*(arm for _, arm, _ in rows)), []
    for names, arm, reference in rows:
        lines.append([*names, seed_counts(study, arm)])
        for budget in budgets:
            losses = study.losses(arm, budget)
            cell = spread(losses, nats) if losses else "–"
            changes = list(differences(study, arm, reference, budget).values()) if reference in study.annealed else []
            if changes and all(map(math.isfinite, losses)):
                cell += f" ({spread(changes, difference)})"
            lines[-1].append(cell)
    return table([*labels, "seeds", *map(tflop, budgets)], lines)


def machines(study: Study) -> str:
    others = "".join(f" Without seconds, beside it: {machine}." for machine in study.machines[1:])
    return f"Machine: {study.timed_on}.{others}"


def tables(study: Study) -> str:
    """All tables of the study in Markdown, without a newline at the end."""
    parts = [
        "### Held-out loss\n\n"
        "Nats a token at the end of training, for each training budget: mean over seeds ± half the range. The best of "
        "each column is bold.",
        loss_table(study),
        "### Cost of the scratch run's loss\n\n"
        "What each arm needs to reach the loss that the scratch run has at each budget, as a share of the scratch "
        "run's own FLOPs and thread-seconds: for the seeds' means, and in brackets the cheapest to the dearest seed. "
        "Between budgets the logarithm of the cost is taken as linear in the loss. `<`: the arm's shortest budget is "
        "better already; not reached: its longest is still worse. Seconds are those of one machine.",
        reach_table(study),
    ]
    if OURS in study.annealed:
        parts += [
            "### Against the best of the others\n\n"
            "Differences in nats on the same seeds; below zero, the arm is better.",
            margin_table(study),
        ]
    if study.sweeps:
        parts += [
            "### Learning rates\n\nIn brackets the difference to the same arm at the study's own rate, same seeds.",
            compared_table(
                study,
                ["arm", "learning rate"],
                [(list(split_sweep(name)), name, split_sweep(name)[0]) for name in study.sweeps],
            ),
        ]
    if study.ablations:
        parts += [
            "### Ablations of ours\n\nIn brackets the difference to ours, same seeds; above zero, ours is better.",
            compared_table(study, ["ablation"], [([arm.removeprefix(ABLATION)], arm, OURS) for arm in study.ablations]),
        ]
    return "\n\n".join([*parts, machines(study)])
