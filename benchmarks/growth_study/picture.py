"""The growth study's picture: held-out loss over training compute, and where the model grew."""

from __future__ import annotations

import math
from itertools import cycle, pairwise
from pathlib import Path
from statistics import fmean

from benchmarks.growth_study.comparison import reach_scratch
from benchmarks.growth_study.results import AUTO, FIXED, MIDDLE, OURS, SCRATCH, SMALL_MOE, Row, Study, nats, tflop
from config import UserError

# Colour, marker and name of the arms that carry the question; the others are drawn small and muted.
MAIN = {
    SMALL_MOE: ("#0077bb", "^", "small size"),
    MIDDLE: ("#b8860b", "D", "middle size"),
    SCRATCH: ("#222222", "s", "target"),
    OURS: ("#cc3311", "o", "ours: middle size, grown at 83 %"),
    AUTO: ("#ee77aa", "*", "ours, auto: nothing grows"),
}
HOW_TO_READ = (
    "Marks: the end of a run, its learning rate decayed to zero; bars: half the range over seeds. "
    "Faint: on the way, a ring where it grew."
)
MUTED_COLOURS = ("#9970ab", "#8c8c8c", "#c98bb9", "#6b8e5a", "#8da0cb", "#a0705a")
MUTED_MARKERS = ("P", "X", "<", ">", "h", "p", "v")


def draw(study: Study, path: Path) -> None:
    """Draws the file anew, in the format of its ending.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panel = plt.subplots(figsize=(10, 7), constrained_layout=True)
    draw_panel(study, panel)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, title=HOW_TO_READ)
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        # matplotlib knows the format by the ending, and has no OSError for one that it does not know.
        raise UserError(f"cannot write {path}: {getattr(error, 'strerror', error)}") from error
    finally:
        plt.close(figure)


def draw_panel(study: Study, panel) -> None:
    """Every arm over training TFLOP, on a logarithmic axis."""
    from matplotlib.ticker import NullFormatter

    muted = zip(cycle(MUTED_COLOURS), cycle(MUTED_MARKERS))
    ends = []
    for arm in [*(arm for arm in MAIN if arm in study.annealed), *(arm for arm in study.arms if arm not in MAIN)]:
        colour, marker, label = MAIN[arm] if arm in MAIN else (*next(muted), arm)
        if arm in MAIN:
            for rows in study.curves.get(arm, {}).values():
                draw_curve(panel, rows, colour)
        groups = [study.at(arm, budget).values() for budget in study.budgets(arm)]
        groups = [group for group in groups if all(math.isfinite(row.loss) for row in group)]
        losses = [[row.loss for row in group] for group in groups]
        x, y = [fmean(row.flops for row in group) / 1e12 for group in groups], [fmean(each) for each in losses]
        ranges = [(max(each) - min(each)) / 2 for each in losses]
        style = {"linewidth": 2.2, "markersize": 8, "zorder": 4} if arm in MAIN else {"linewidth": 0, "markersize": 5.5}
        if arm in FIXED:
            style["linestyle"] = "--"
        panel.errorbar(x, y, ranges, color=colour, marker=marker, label=label, elinewidth=1, markeredgewidth=0, **style)
        ends += zip(x, y)
    panel.set_title(headline(study), fontsize=11)
    panel.set_xlabel("training compute, TFLOP")
    panel.set_ylabel("held-out loss, nats a token")
    panel.set_xscale("log")
    panel.set_xticks([budget / 1e12 for budget in study.budgets(*study.arms)])
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    # The beginning of the curves would squeeze what is to be compared into a corner.
    costs, losses = zip(*ends)
    height = (max(losses) - min(losses)) or 1.0
    panel.set_xlim(0.8 * min(costs), 1.2 * max(costs))
    panel.set_ylim(min(losses) - 0.07 * height, max(losses) + 0.1 * height)
    panel.grid(alpha=0.25)


def draw_curve(panel, rows: list[Row], colour: str) -> None:
    """A run on its way, with a ring where it became wider."""
    panel.plot([row.flops / 1e12 for row in rows], [row.loss for row in rows], color=colour, alpha=0.35, linewidth=0.8)
    grown = [row for before, row in pairwise(rows) if row.width > before.width]
    x, y = [row.flops / 1e12 for row in grown], [row.loss for row in grown]
    panel.plot(x, y, "o", markersize=10, markerfacecolor="none", markeredgecolor=colour)


def headline(study: Study) -> str:
    """What ours needs to reach the target's loss at the longest budget at which it does."""
    for budget in reversed(study.budgets(SCRATCH)):
        reached = reach_scratch(study, OURS, budget, "flops")
        if reached and reached[0].bound < 1:
            loss = nats(fmean(study.losses(SCRATCH, budget)))
            return f"Ours has the target's loss of {tflop(budget)} ({loss}) with {reached[0]} of the FLOPs"
    return "Growth and fixed sizes, trained for the same compute"
