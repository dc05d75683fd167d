"""The large figures of a report: loss, close-ups of the boundaries, expert load. What the history lacks is left out."""

from __future__ import annotations

from dataclasses import dataclass

from report import axes
from report.axes import Axis
from report.charts import Chart, Mark, Note, Series
from report.heatmap import Heatmap, heatmaps
from report.numbers import is_number
from report.overview import TABS
from report.past_run import PastRun

AXIS_NAMES = {"steps": "training steps", "tokens": "training tokens", "flops": "training compute, FLOP"}
# Steps beside a boundary that its close-up shows.
CLOSE_STEPS = 30


@dataclass(frozen=True)
class XAxis:
    """An axis over the whole run, and how a place becomes a number on it."""

    axis: Axis
    key: str
    divisor: float = 1.0

    def at(self, place: dict) -> float:
        return place[self.key] / self.divisor

    @classmethod
    def of(cls, key: str, places: list[dict], most: int = 4) -> XAxis | None:
        """None where the history does not have it."""
        values = [place[key] for place in places]
        if len(values) < 2 or not all(map(is_number, values)):
            return None
        if key == "seconds":
            axis, divisor = axes.duration_axis(values, most)
            return cls(axis, key, divisor)
        return cls(axes.linear(AXIS_NAMES[key], values, most, exact=True), key)


def all_places(past: PastRun) -> list[dict]:
    """Of its beginning and all steps."""
    return [past.end(0), *(place for phase in past.phases for place in phase.places)]


def marks(past: PastRun, x: XAxis) -> list[Mark]:
    inside = [
        Mark(x.at(past.end(row["from_phase"])), f"{row['from_phase']}→{row['to_phase']}") for row in past.boundaries
    ]
    return [mark for mark in inside if x.axis.low <= mark.x <= x.axis.high]


def spans(past: PastRun, x: XAxis) -> list[tuple[float, float, str, str]]:
    """The stretch of each phase."""
    found, left = [], x.axis.low
    for phase in past.phases:
        if phase.steps:
            right = min(x.axis.high, max(left, x.at(past.end(phase.number))))
            found.append((x.axis.share(left), x.axis.share(right), phase.phase.short, f"phase{phase.number}"))
            left = right
    return found


def loss_charts(past: PastRun, other: PastRun | None = None) -> dict[str, Chart]:
    """Loss over each of the axes that the history has."""
    charts = {}
    for key in TABS:
        # One that was counted in the first run alone is drawn without the second.
        for beside in (other, None) if other else (None,):
            x = XAxis.of(key, all_places(past) + (all_places(beside) if beside else []), most=7)
            chart = x and loss_chart(past, beside, x)
            if chart:
                charts[key] = chart
                break
    return charts


def loss_chart(past: PastRun, other: PastRun | None, x: XAxis) -> Chart | None:
    series = []
    if other:
        series += loss_series(other, x, "other", f"held-out, {other.folder.name}")
    series += loss_series(past, x, "phase{}", "held-out, phase {}" + (f", {past.folder.name}" if other else ""))
    values = [y for each in series for _, y in each.points]
    if not values or min(values) <= 0:
        return None
    training = [each for each in series if not each.is_dots]
    heldout = [each for each in series if each.is_dots and each.points]
    notes = []
    if past.current.evals:
        last = past.current.evals[-1]
        notes = [Note(x.at(past.place(last)), last["loss"], f"{last['loss']:.3f}")]
    first = past.phases[0].evals or past.current.evals
    description = f"Cross-entropy over {x.axis.name}."
    if first and past.current.evals:
        description += f" Held-out loss falls from {first[0]['loss']:.3f} to {past.current.evals[-1]['loss']:.3f} nats."
    return Chart(
        f"Loss over {TABS[x.key].lower()}", description, x.axis, axes.logarithmic("nats a token", values),
        training + heldout, marks(past, x), notes, spans(past, x), is_tall=True,
    )  # fmt: skip


def loss_series(past: PastRun, x: XAxis, style: str, label: str) -> list[Series]:
    """For each phase the training loss, a line, and the held-out one, dots that begin at the boundary."""
    found = []
    for phase in past.phases:
        n = phase.number
        line = [(x.at(place), row["loss"]) for row, place in zip(phase.steps, phase.places)]
        dots = [(x.at(past.place(row)), row["loss"]) for row in phase.evals]
        if line:
            dots = [
                (x.at(past.end(r["from_phase"])), r["loss_after"]) for r in past.boundaries if r["to_phase"] == n
            ] + dots
        if style == "other":
            found += [Series(label, dots, style, is_dots=True, is_joined=True)]
        else:
            found += [
                Series("", line, style.format(n), is_faint=True),
                Series(label.format(n), dots, style.format(n), True, True),
            ]
    return found


def close_ups(past: PastRun) -> dict[int, Chart]:
    """The loss on both sides of each boundary, step by step."""
    charts = {}
    for row in past.boundaries:
        at, series = past.end(row["from_phase"])["steps"], []
        for phase in past.phases[row["from_phase"] - 1 : row["to_phase"]]:
            own = [(place["steps"], r["loss"]) for r, place in zip(phase.steps, phase.places)]
            dots = [(past.place(r)["steps"], r["loss"]) for r in phase.evals]
            dots += [(at, row["loss_after"])] if phase.number == row["to_phase"] else [(at, row["loss_before"])]
            style = f"phase{phase.number}"
            series.append(Series("", near(own, at), style, is_faint=True))
            series.append(Series(f"held-out, phase {phase.number}", sorted(near(dots, at)), style, True, True))
        values = [y for each in series for _, y in each.points]
        x_values = [x for each in series for x, _ in each.points]
        if not values:
            continue
        charts[row["to_phase"]] = Chart(
            "Loss around the boundary",
            f"Held-out loss before {row['loss_before']:.4f}, after {row['loss_after']:.4f} nats.",
            axes.linear("training steps", x_values, exact=True), axes.linear("nats a token", values),
            series, [Mark(at)],
        )  # fmt: skip
    return charts


def near(points: list[tuple[float, float]], at: float) -> list[tuple[float, float]]:
    return [point for point in points if abs(point[0] - at) <= CLOSE_STEPS]


def expert_maps(past: PastRun) -> tuple[list[Heatmap], int, Axis, list[Mark]] | None:
    """The maps, of how many layers, their x axis and boundaries; None for a run that has no experts yet."""
    shares = [
        (past.place(row)["steps"], row["expert_shares"]) for row in past.events("step") if row.get("expert_shares")
    ]
    if len(shares) < 2:
        return None
    axis = axes.linear("training steps", [at for at, _ in shares], exact=True)
    x = XAxis(axis, "steps")
    return (*heatmaps(shares, axis), axis, marks(past, x))
