"""What the growth study found: its tables as Markdown, and its picture, from the results file alone.

    python -m benchmarks.growth_study_report

Prints the tables, puts them between the marker lines of docs/GROWTH_STUDY.md and draws
docs/growth_study.png. Only annealed losses count, those where the learning rate has fallen to zero;
the trunks at constant learning rate are drawn and nothing else. Seeds are compared in pairs: an arm
with fewer seeds than another is compared on those that both have.

Exit codes: 0 done, 2 something given cannot work.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import cycle, pairwise
from pathlib import Path
from statistics import fmean

from command_line import OneLineParser
from config import UserError

RESULTS = Path(__file__).parent / "results" / "growth_study.json"
DOCS = Path(__file__).parent.parent / "docs"
MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")

SCRATCH, SMALL_DENSE, SMALL_MOE, OURS = "target from scratch", "small dense continued", "small MoE continued", "ours"
SWEEP, ABLATION = ", lr ", "ablation: "


@dataclass(frozen=True)
class Row:
    """One measurement: counted FLOPs, seconds of one thread, held-out loss in nats a token.

    `budget` is in FLOPs; None on the trunk. The `loss` of a run that diverged is infinite.
    """

    arm: str
    seed: int
    budget: float | None
    flops: float
    seconds: float
    loss: float
    steps: int
    width: int


NUMBER = (int, float)
KINDS = {
    "arm": str, "seed": int, "budget": (*NUMBER, type(None)), "flops": NUMBER, "seconds": NUMBER, "loss": NUMBER,
    "steps": int, "width": int,
}  # fmt: skip


@dataclass
class Study:
    """The rows by arm: annealed ones by (seed, budget), those of the trunk by seed in the order of training."""

    machine: str
    annealed: dict[str, dict[tuple[int, float], Row]] = field(default_factory=dict)
    trunks: dict[str, dict[int, list[Row]]] = field(default_factory=dict)

    def at(self, arm: str, budget: float) -> dict[int, Row]:
        """The arm's annealed rows at one budget, by seed."""
        return {seed: row for (seed, b), row in self.annealed[arm].items() if b == budget}

    def losses(self, arm: str, budget: float) -> list[float]:
        return [row.loss for row in self.at(arm, budget).values()]

    def budgets(self, *arms: str) -> list[float]:
        """All budgets that one of the arms has, ascending."""
        return sorted({budget for arm in arms for _, budget in self.annealed[arm]})

    def best_first(self, arms: list[str]) -> list[str]:
        """By the mean loss at the longest budget; arms that lack it last."""
        longest = max(self.budgets(*arms), default=0)
        return sorted(arms, key=lambda arm: fmean(self.losses(arm, longest) or [math.inf]))

    @property
    def arms(self) -> list[str]:
        """All but sweeps and ablations, best first."""
        return self.best_first([arm for arm in self.annealed if SWEEP not in arm and not arm.startswith(ABLATION)])

    @property
    def ablations(self) -> list[str]:
        return self.best_first([arm for arm in self.annealed if SWEEP not in arm and arm.startswith(ABLATION)])

    @property
    def sweeps(self) -> list[str]:
        """By arm, then by learning rate."""
        names = [arm for arm in self.annealed if SWEEP in arm]
        return sorted(names, key=lambda name: (split_sweep(name)[0], float(split_sweep(name)[1])))


def split_sweep(name: str) -> tuple[str, str]:
    """The arm and the learning rate that a sweep's name is made of."""
    arm, _, rate = name.rpartition(SWEEP)
    return arm, rate


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
    if not (isinstance(content, dict) and isinstance(content.get("rows"), list) and "machine" in content):
        raise UserError(f"{path} holds no machine and rows; python -m benchmarks.growth_study writes such a file")
    study = Study(str(content["machine"]))
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
    if not math.isfinite(row.loss):
        # Unlike nan, infinity compares: a run that diverged is worse than all others.
        row = dataclasses.replace(row, loss=math.inf)
    if row.budget is None:
        study.trunks.setdefault(row.arm, {}).setdefault(row.seed, []).append(row)
        return
    for name in ("budget", "flops", "seconds"):
        if not 0 < getattr(row, name) < math.inf:
            raise UserError(f"{name} is {getattr(row, name)}, must be more than 0")
    if SWEEP in row.arm and not is_number(split_sweep(row.arm)[1]):
        raise UserError(f"arm is {row.arm!r}, but no learning rate follows {SWEEP!r}")
    if (row.seed, row.budget) in study.annealed.setdefault(row.arm, {}):
        raise UserError(
            f"arm {row.arm!r}, seed {row.seed}, budget {row.budget:g} is there twice; keep one study a file"
        )
    study.annealed[row.arm][row.seed, row.budget] = row


def is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def check_reference(study: Study, path: Path) -> None:
    """Raises UserError unless the scratch run, to which all is compared, can serve as that."""
    if SCRATCH not in study.annealed:
        raise UserError(f"{path} has no annealed rows of the arm {SCRATCH!r}, to which the others are compared")
    for budget in study.budgets(SCRATCH):
        if not all(map(math.isfinite, study.losses(SCRATCH, budget))):
            raise UserError(f"{path}: {SCRATCH!r} diverged, so nothing can be compared to it")
        if len(study.at(SCRATCH, budget)) < 2:
            raise UserError(
                f"{path} has only one seed of {SCRATCH!r} at {tflop(budget)}; run two or more, as one has no spread"
            )


def tflop(flops: float) -> str:
    return f"{flops / 1e12:g} TFLOP"


def nats(loss: float) -> str:
    return f"{loss:.3f}" if math.isfinite(loss) else "diverged"


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
    """How the arm reaches the scratch run's loss at `budget`: the seeds' means first, then each seed alone.

    `cost` is "flops" or "seconds". Seeds that lack some of the arm's budgets are left out, for their
    curves would end too early. Empty where no seed is left.
    """
    budgets, scratch = study.budgets(arm), study.at(SCRATCH, budget)
    seeds = sorted(seed for seed in scratch if all((seed, b) in study.annealed[arm] for b in budgets))

    def mean(rows: list[Row]) -> tuple[float, float]:
        return fmean(getattr(row, cost) for row in rows), fmean(row.loss for row in rows)

    reached = []
    for group in [seeds, *([seed] for seed in seeds)] if seeds else []:
        whole, target = mean([scratch[seed] for seed in group])
        points = [mean([study.annealed[arm][seed, b] for seed in group]) for b in budgets]
        reached.append(reach(sorted(points), target, whole))
    return reached


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


def differences(study: Study, arm: str, reference: str, budget: float) -> dict[int, float]:
    """Loss of `arm` minus that of `reference`, by seed, for the seeds that both have."""
    rows, references = study.at(arm, budget), study.at(reference, budget)
    return {seed: rows[seed].loss - references[seed].loss for seed in sorted(rows.keys() & references.keys())}


def margin_cells(study: Study, candidates: list[str], budget: float) -> list[str]:
    """The candidate that ours beats by least, ours minus it, and the same for each seed."""
    margins = {arm: differences(study, OURS, arm, budget) for arm in candidates}
    margins = {arm: by_seed for arm, by_seed in margins.items() if by_seed}
    if not margins:
        return ["–"] * 3
    best = max(margins, key=lambda arm: fmean(margins[arm].values()))
    values = list(margins[best].values())
    return [
        best,
        spread(values, difference),
        ", ".join(f"{seed}: {difference(x)}" for seed, x in margins[best].items()),
    ]


def margin_table(study: Study) -> str:
    baselines = [arm for arm in study.arms if arm in (SCRATCH, SMALL_DENSE, SMALL_MOE)]
    others = [arm for arm in study.arms if arm != OURS]
    header = ["budget", "best baseline", "ours minus it", "by seed", "best other arm", "ours minus it", "by seed"]
    rows = [
        [tflop(budget), *margin_cells(study, baselines, budget), *margin_cells(study, others, budget)]
        for budget in study.budgets(OURS)
    ]
    return table(header, rows)


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
        "better already; not reached: its longest is still worse.",
        reach_table(study),
    ]
    if OURS in study.annealed:
        parts += [
            "### Ours against the best of the others\n\n"
            "Differences in nats on the same seeds; below zero, ours is better. The baselines are the target "
            "from scratch and the small models continued.",
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
    return "\n\n".join([*parts, f"Machine: {study.machine}."])


def with_tables(path: Path, text: str) -> bytes:
    """The Markdown file's content with `text` between its marker lines.

    Raises:
        UserError: the file cannot be read, or lacks the markers.
    """
    try:
        lines = path.read_bytes().decode("utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it needs the lines {' and '.join(MARKERS)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    places = [i for i, line in enumerate(lines) if line.strip() in MARKERS]
    if [lines[i].strip() for i in places] != list(MARKERS):
        raise UserError(f"{path} needs the lines {' and '.join(MARKERS)}, each once and in this order")
    begin, end = places
    return "".join([*lines[: begin + 1], f"\n{text}\n\n", *lines[end:]]).encode()


# Colour, marker and name of the arms that carry the question; the others are drawn thin and muted.
MAIN = {
    OURS: ("#cc3311", "o", "ours: small MoE, then grown"),
    SCRATCH: ("#222222", "s", SCRATCH),
    SMALL_MOE: ("#0077bb", "^", SMALL_MOE),
    SMALL_DENSE: ("#009988", "v", SMALL_DENSE),
}
HOW_TO_READ = (
    "Marks: end of training, learning rate decayed to zero; bars: half the range over seeds. "
    "Faint: on the way, at constant learning rate."
)
MUTED_COLOURS = ("#b8860b", "#9970ab", "#8c8c8c", "#c98bb9", "#6b8e5a", "#8da0cb", "#a0705a")
MUTED_MARKERS = ("D", "P", "X", "<", ">", "h", "*", "p")


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
            for rows in study.trunks.get(arm, {}).values():
                x = [getattr(row, cost) / unit for row in rows]
                panel.plot(x, [row.loss for row in rows], color=colour, alpha=0.35, linewidth=0.8)
        groups = [list(study.at(arm, budget).values()) for budget in study.budgets(arm)]
        groups = [group for group in groups if all(math.isfinite(row.loss) for row in group)]
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
    # The beginning of the trunks would squeeze what is to be compared into a corner.
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
    """Where ours becomes wider, mean over seeds; empty where its trunk does not tell."""
    by_seed = [
        [getattr(row, cost) for before, row in pairwise(rows) if row.width > before.width]
        for rows in study.trunks.get(OURS, {}).values()
    ]
    return [fmean(costs) for costs in zip(*by_seed)]


def parse(arguments: list[str] | None):
    """Raises UserError for unknown flags."""
    parser = OneLineParser(prog="python -m benchmarks.growth_study_report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FILE", help="what benchmarks.growth_study wrote"
    )
    parser.add_argument(
        "--markdown", type=Path, default=DOCS / "GROWTH_STUDY.md", metavar="FILE",
        help="the tables replace what stands between its marker lines",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, default=DOCS / "growth_study.png", metavar="FILE", help="drawn anew")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for ±; it must not end the program.
        stream.reconfigure(errors="replace")
    try:
        given = parse(arguments)
        study = read_study(given.results)
        text = tables(study)
        print(text)
        content = with_tables(given.markdown, text)
        draw(study, given.picture)
        try:
            given.markdown.write_bytes(content)
        except OSError as error:
            raise UserError(f"cannot write {given.markdown}: {error.strerror}") from error
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
