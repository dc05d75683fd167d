"""One run beside another: what they were given, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from phases import PHASES
from report.history import given_differences
from report.numbers import NONE, duration, exponent, figure, is_number, millions, si
from report.overview import status, total_flops, total_seconds
from report.past_run import PastRun


@dataclass
class Beside:
    """`names` of both runs; `results` and `given` are (what, first, second), results with a difference as well."""

    names: tuple[str, str]
    results: list[tuple[str, str, str, str]]
    given: list[tuple[str, str, str]]


def set_beside(past: PastRun, other: PastRun) -> Beside:
    runs = (past, other)
    results = [("status", *map(status, runs), "")]
    for phases in zip(*(run.phases for run in runs)):
        losses = [phase.loss_after for phase in phases]
        label = f"held-out loss after phase {phases[0].number}"
        results.append(line(label, *losses, "{:.4f}".format, "{:+.4f}".format))
    for phase in PHASES[1:]:
        jumps = [next((row["jump"] for row in run.boundaries if row["to_phase"] == phase.number), None) for run in runs]
        results.append(line(f"jump {phase.number - 1}→{phase.number}, nats", *jumps, exponent))
    results.append(line("parameters at the end", *(run.current.total for run in runs), millions))
    results.append(line("tokens", *(run.last["tokens"] for run in runs), si))
    results.append(line("compute, FLOP", *map(total_flops, runs), si, ratio))
    results.append(line("time", *map(total_seconds, runs), duration, ratio))
    return Beside(
        (past.folder.name, other.folder.name),
        [row for row in results if row[1:3] != (NONE, NONE)],
        [
            (name, figure_or_text(a), figure_or_text(b))
            for _, name, a, b in given_differences(*(run.run | {"config": run.config} for run in runs))
        ],
    )


def line(label: str, first, second, show, difference=None) -> tuple[str, str, str, str]:
    """A line of results; `difference` is of second minus first where it can be had."""
    shown = [show(value) if is_number(value) else NONE for value in (first, second)]
    if difference is None or NONE in shown:
        return label, *shown, ""
    text = difference(first, second) if difference is ratio else difference(second - first)
    return label, *shown, text.replace("-", "−")


def ratio(first: float, second: float) -> str:
    return f"× {second / first:.2f}" if first else ""


def figure_or_text(value) -> str:
    return NONE if value is None else figure(value)
