"""The growth study's picture: held-out loss over compute and over seconds, all arms."""

from __future__ import annotations

import math
from itertools import cycle, pairwise
from pathlib import Path
from statistics import fmean

from benchmarks.growth_study.comparison import reach_scratch
from benchmarks.growth_study.results import AUTO, MIDDLE, OURS, SCRATCH, SMALL_DENSE, SMALL_MOE, Study, nats
from config import UserError

# Colour, marker and name of the arms that carry the question; the others are drawn thin and muted.
MAIN = {
    OURS: ("#cc3311", "o", "ours: middle size, then grown"),
    AUTO: ("#ee7733", "*", "ours, auto: grown early, where that pays"),
    SCRATCH: ("#222222", "s", SCRATCH),
    SMALL_MOE: ("#0077bb", "^", SMALL_MOE),
    SMALL_DENSE: ("#009988", "v", SMALL_DENSE),
    MIDDLE: ("#b8860b", "D", MIDDLE),
}
HOW_TO_READ = (
    "Marks: end of training, learning rate decayed to zero; bars: half the range over seeds. Faint: on the way."
)
MUTED_COLOURS = ("#9970ab", "#8c8c8c", "#c98bb9", "#6b8e5a", "#8da0cb", "#a0705a")
MUTED_MARKERS = ("P", "X", "<", ">", "h", "*", "p")


def draw(study: Study, path: Path) -> None:
    """Two panels, loss over training TFLOP and over thread-seconds.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(12, 6.6), sharey=True, constrained_layout=True)
    draw_panel(study, panels[0], "flops", 1e12)
    draw_panel(study, panels[1], "seconds", 1)
    panels[0].set_ylabel("held-out loss, nats a token")
    panels[0].set_xlabel("training compute, TFLOP")
    panels[1].set_xlabel("training time, seconds of one CPU thread")
    bars, labels = panels[0].get_legend_handles_labels()
    handles = [bar.lines[0] for bar in bars]
    n_main = sum(arm in MAIN for arm in study.annealed)
    style = {"ncols": 4, "frameon": False}
    figure.legend(handles[:n_main], labels[:n_main], loc="outside upper center", title=HOW_TO_READ, **style)
    figure.legend(handles[n_main:], labels[n_main:], loc="outside lower center", **style)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        # matplotlib knows the format by the ending, and has no OSError for one that it does not know.
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error
    finally:
        plt.close(figure)


def draw_panel(study: Study, panel, cost: str, unit: float) -> None:
    """Every arm over one cost, "flops" or "seconds", in units of `unit`."""
    from matplotlib.ticker import LogLocator, NullFormatter

    muted = zip(cycle(MUTED_COLOURS), cycle(MUTED_MARKERS))
    costs, losses = [], []
    for arm in [*(arm for arm in MAIN if arm in study.annealed), *(arm for arm in study.arms if arm not in MAIN)]:
        bold = arm in MAIN
        colour, marker, label = MAIN[arm] if bold else (*next(muted), arm)
        if bold:
            for rows in study.curves.get(arm, {}).values():
                rows = [row for row in rows if study.is_comparable([row], cost)]
                x = [getattr(row, cost) / unit for row in rows]
                panel.plot(x, [row.loss for row in rows], color=colour, alpha=0.35, linewidth=0.8)
        groups = [list(study.at(arm, budget).values()) for budget in study.budgets(arm)]
        groups = [group for group in groups if all(math.isfinite(row.loss) for row in group)]
        groups = [group for group in groups if study.is_comparable(group, cost)]
        x = [fmean(getattr(row, cost) for row in group) / unit for group in groups]
        y = [fmean(row.loss for row in group) for group in groups]
        ranges = [(max(row.loss for row in group) - min(row.loss for row in group)) / 2 for group in groups]
        style = {"linewidth": 2.2, "markersize": 8, "zorder": 4} if bold else {"linewidth": 0.8, "markersize": 5.5}
        panel.errorbar(x, y, ranges, color=colour, marker=marker, label=label, elinewidth=1, markeredgewidth=0, **style)
        costs, losses = costs + x, losses + y
    panel.axhline(scratch_loss(study), color=MAIN[SCRATCH][0], linestyle="--", linewidth=1)
    for grown in growth_costs(study, cost):
        # Cheap runs are never good, and the text is upright: it meets neither a curve nor the next growth.
        panel.axvline(grown / unit, color=MAIN[OURS][0], linestyle=":", linewidth=1)
        panel.annotate(
            "ours grows", (grown / unit, 0.02), (-3, 0), ("data", "axes fraction"), "offset points", rotation=90,
            ha="right", va="bottom", fontsize=9, color=MAIN[OURS][0], annotation_clip=True,
        )  # fmt: skip
    panel.set_title(headline(study, cost), fontsize=11)
    panel.set_xscale("log")
    if cost == "flops":
        panel.set_xticks([budget / unit for budget in study.budgets(*study.arms)])
    else:
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    # The beginning of the curves would squeeze what is to be compared into a corner.
    height = (max(losses) - min(losses)) or 1.0
    panel.set_xlim(0.6 * min(costs), 1.2 * max(costs))
    panel.set_ylim(min(losses) - 0.07 * height, max(losses) + 0.15 * height)
    panel.grid(alpha=0.25)


def scratch_loss(study: Study) -> float:
    """The scratch run's loss at its longest budget, mean over seeds."""
    return fmean(study.losses(SCRATCH, study.budgets(SCRATCH)[-1]))


def headline(study: Study, cost: str) -> str:
    """What ours needs to reach the dashed line, in words."""
    target = f"the loss of the finished scratch run\n(dashed, {nats(scratch_loss(study))})"
    reached = reach_scratch(study, OURS, study.budgets(SCRATCH)[-1], cost) if OURS in study.annealed else []
    if not reached:
        return f"Against {target}"
    if reached[0].bound > 0:
        return f"Ours does not reach {target}"
    what = "FLOPs" if cost == "flops" else "seconds"
    return f"Ours reaches {target} with {reached[0]} of its {what}"


def growth_costs(study: Study, cost: str) -> list[float]:
    """Where ours becomes wider, mean over the seeds of its longest budget; empty where their curves do not tell."""
    if OURS not in study.annealed:
        return []
    curves = study.curves.get(OURS, {})
    by_seed = [
        [getattr(row, cost) for before, row in pairwise(curves[seed]) if row.width > before.width]
        for seed in curves.keys() & study.at(OURS, study.budgets(OURS)[-1]).keys()
    ]
    return [fmean(costs) for costs in zip(*by_seed)]
