"""One run beside another: what they were given, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from report.history import given_differences
from report.numbers import NONE, duration, exponent, figure, is_number, millions, si
from report.overview import status, total_flops, total_seconds
from report.record import Record


@dataclass
class Comparison:
    """`names` of both runs; `results` and `given` are (what, first, second), results with a difference as well."""

    names: tuple[str, str]
    results: list[tuple[str, str, str, str]]
    given: list[tuple[str, str, str]]


def compare(record: Record, other: Record) -> Comparison:
    runs = (record, other)
    results = [("status", *map(status, runs), "")]
    for number in (1, 2, 3):
        first, second = (run.phases[number - 1] for run in runs)
        results.append(
            line(
                f"held-out loss after phase {number}",
                first.loss_after,
                second.loss_after,
                "{:.4f}".format,
                "{:+.4f}".format,
            )
        )
    for to_phase in (2, 3):
        jumps = [next((row["jump"] for row in run.boundaries if row["to_phase"] == to_phase), None) for run in runs]
        results.append(line(f"jump {to_phase - 1}→{to_phase}, nats", *jumps, exponent))
    ends = [run.end(3) for run in runs]
    results.append(line("parameters at the end", *(run.current.total for run in runs), millions))
    results.append(line("tokens", *(end["tokens"] for end in ends), si))
    results.append(line("compute, FLOP", *map(total_flops, runs), si, ratio))
    results.append(line("time", *map(total_seconds, runs), duration, ratio))
    return Comparison(
        (record.folder.name, other.folder.name),
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
