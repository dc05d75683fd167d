"""The small figures of a report: how training went, and what growth added coming to life."""

from __future__ import annotations

from report import axes
from report.charts import Chart, Series
from report.figures import XAxis, all_places, marks, spans
from report.numbers import figure, is_number
from report.past_run import PastRun

# Throughput is measured over so many stretches of a phase: a single step tells of the clock, and waits for no device.
STRETCHES = 60
# Colours in style.css for series that belong to no phase.
TONES = 6


def training_charts(past: PastRun) -> list[Chart]:
    """Learning rate, gradient norm, throughput, memory and the routers' losses, over steps."""
    x = XAxis.of("steps", all_places(past))
    if not x:
        return []
    clip = past.config.get("grad_clip")
    charts = [
        rows_chart(past, x, "Learning rate", "peak of each phase's schedule, Muon's", "lr"),
        rows_chart(past, x, "Gradient norm", f"clipped at {clip:g}" if clip else "", "grad_norm", is_log=True),
        throughput_chart(past, x),
        rows_chart(past, x, "Memory", memory_hint(past), "memory_bytes", 1e9, "GB"),
        rows_chart(past, x, "Load-balancing loss", "1 is even use of all experts", "balance_loss", low=1.0),
        rows_chart(past, x, "Router z-loss", "large logits make it grow", "z_loss"),
    ]
    return [chart for chart in charts if chart]


def memory_hint(past: PastRun) -> str:
    device = past.run.get("device", "")
    return {"cpu": "resident in the process", "mps": "allocated by the driver"}.get(device, "the most allocated so far")


def rows_chart(
    past: PastRun, x: XAxis, title: str, hint: str, key: str, divisor: float = 1, unit: str = "", low: float = 0.0,
    is_log: bool = False,
) -> Chart | None:  # fmt: skip
    points = {
        phase.number: [
            (x.at(place), row[key] / divisor)
            for row, place in zip(phase.steps, phase.places)
            if is_number(row.get(key))
        ]
        for phase in past.phases
    }
    return phase_chart(past, x, title, hint, points, unit, low, is_log)


def throughput_chart(past: PastRun, x: XAxis) -> Chart | None:
    points = {}
    for phase in past.phases:
        # In a short phase shorter stretches: one point is no line.
        every = max(min(past.config.get("log_every", 1), len(phase.steps) // 4), len(phase.steps) // STRETCHES, 1)
        rows, places = phase.steps[::every], phase.places[::every]
        points[phase.number] = [
            (x.at(place), (b["tokens"] - a["tokens"]) / (b["seconds"] - a["seconds"]))
            for a, b, place in zip(rows, rows[1:], places[1:]) if b["seconds"] > a["seconds"]
        ]  # fmt: skip
    return phase_chart(past, x, "Throughput", "measuring included", points, "tokens a second")


def phase_chart(
    past: PastRun, x: XAxis, title: str, hint: str, points: dict[int, list], unit: str = "", low: float = 0.0,
    is_log: bool = False,
) -> Chart | None:  # fmt: skip
    """One line for each phase; None where there is nothing to draw."""
    if is_log:
        points = {phase: [(a, y) for a, y in line if y > 0] for phase, line in points.items()}
    series = [Series("", line, f"phase{phase}") for phase, line in points.items() if line]
    values = [y for each in series for _, y in each.points]
    if not values:
        return None
    room = axes.ROOM_FOR_NAMES
    y = axes.logarithmic("", values, room) if is_log else axes.linear("", values, low=min(low, *values), above=room)
    ranges = {phase: [pick(y for _, y in line) for pick in (min, max)] for phase, line in points.items() if line}
    said = "; ".join(f"phase {phase}: {figure(low)} to {figure(high)}" for phase, (low, high) in ranges.items())
    return Chart(
        title, f"{said} {unit}".strip(), x.axis, y, series, marks(past, x),
        spans=[(left, right, "", style) for left, right, _, style in spans(past, x)],
        hint="; ".join(text for text in (unit, hint) if text),
    )  # fmt: skip


def liveness_charts(past: PastRun) -> list[Chart]:
    """How the clones part, how many directions the grown matrices use, and how evenly experts are used."""
    rows = [(past.end(row["phase"] - 1)["steps"] + row["steps"], row) for row in past.events("liveness")]
    if len({at for at, _ in rows}) < 2:
        return []
    x = axes.linear("training steps", [at for at, _ in rows])
    boundary_marks = marks(past, XAxis(x, "steps"))

    def chart(title: str, hint: str, values_of) -> Chart | None:
        """`values_of` gives a row's values by label; a line connects those of one label within a phase."""
        lines: dict[str, list] = {}
        for at, row in rows:
            for label, value in values_of(row).items():
                lines.setdefault(label, []).append((at, value, row["phase"]))
        series = [
            Series(
                f"{label} {ends(line)}", [(at, y) for at, y, p in line if p == phase], f"tone{1 + i % TONES}",
                is_dots=True, is_joined=True,
            )
            for i, (label, line) in enumerate(lines.items()) for phase in sorted({p for *_, p in line})
        ]  # fmt: skip
        values = [y for each in series for _, y in each.points]
        if not values:
            return None
        y = axes.linear("", values, low=min(0.0, *values))
        said = "; ".join(f"{label} {ends(line)}" for label, line in lines.items())
        return Chart(title, said, x, y, series, boundary_marks, hint=hint)

    charts = [
        chart("Cosine between clones", "1: still equal; it falls as they part",
              lambda row: {c["kind"]: c["average"] for c in row.get("clone_cosines") or []}),
        chart("Effective rank", "share of directions in use",
              lambda row: row.get("effective_rank") or {}),
        chart("Rank of new blocks", "0: still an identity", lambda row: row.get("identity_effective_rank") or {}),
        chart("Evenness of experts", "entropy of the shares; 1 is even",
              lambda row: {"least even layer": min(row["expert_entropies"])} if row.get("expert_entropies") else {}),
    ]  # fmt: skip
    return [each for each in charts if each]


def ends(line: list[tuple]) -> str:
    """The first and the last value in the last phase of a line."""
    own = [f"{y:.3f}" if is_number(y) else "?" for _, y, phase in line if phase == line[-1][2]]
    return f"{own[0]} → {own[-1]}" if len(own) > 1 else own[0]
