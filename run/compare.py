"""Where do two runs first part?   python -m run.compare RUN_A RUN_B

Each is a checkpoint folder. First what they were given, settings, versions, machine and stories; then their
histories, row by row, without what a clock says; then their models, bit by bit.

Exit codes: 0 the same, 1 they differ, 2 something given cannot be compared.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from command_line import OneLineParser, run_command
from models import load_model
from phases import PHASES
from report.history import WALL_CLOCK, given_differences, history_of

# What makes two rows the same row.
NAMES = ("event", "phase", "to_phase", "step", "steps", "check")


def differences(a: Path, b: Path) -> Iterator[tuple[str, str]]:
    """(kind, text) of everything in which two runs differ; of their histories the first row alone.

    Raises:
        UserError: a folder has no history, or a file in it is damaged.
    """
    histories = [history_of(folder) for folder in (a, b)]
    for kind, name, first, second in given_differences(*(rows[0] for rows in histories)):
        yield kind, f"{name}: {first} | {second}"
    if text := first_difference(*(rows[1:] for rows in histories)):
        yield "history", text
    for name in (phase.file for phase in PHASES):
        paths = [folder / name for folder in (a, b)]
        there = [path.exists() for path in paths]
        if there[0] != there[1]:
            yield "model", f"{name}: only in {a if there[0] else b}"
        elif all(there) and not same_model(*paths):
            yield "model", f"{name}: not the same bits"


def first_difference(a: list[dict], b: list[dict]) -> str:
    """The first row that only one has, or that differs in a figure; empty if there is none."""
    for index in range(max(len(a), len(b))):
        rows = [each[index] if index < len(each) else None for each in (a, b)]
        if rows[0] is None or rows[1] is None:
            there = rows[0] or rows[1]
            return f"{'the second' if rows[1] is None else 'the first'} ends before {name_of(there)}"
        if name_of(rows[0]) != name_of(rows[1]):
            return f"{name_of(rows[0])} | {name_of(rows[1])}"
        differ = [k for k in dict.fromkeys([*rows[0], *rows[1]]) if rows[0].get(k) != rows[1].get(k)]
        figures = [f"{k} {rows[0].get(k)} | {rows[1].get(k)}" for k in differ if k not in WALL_CLOCK]
        if figures:
            return f"the same up to {name_of(rows[0])}: {'; '.join(figures)}"
    return ""


def name_of(row: dict) -> str:
    return ", ".join(str(row[k]) if k == "event" else f"{k} {row[k]}" for k in NAMES if k in row)


def same_model(a: Path, b: Path) -> bool:
    first, second = (load_model(path) for path in (a, b))
    weights = second.state_dict()
    return first.config == second.config and all(torch.equal(v, weights[k]) for k, v in first.state_dict().items())


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: compare(arguments), "both runs' models have to fit, one phase at a time")


def compare(arguments: list[str] | None) -> int:
    parser = OneLineParser(usage="python -m run.compare RUN_A RUN_B", description=__doc__)
    for name in ("RUN_A", "RUN_B"):
        parser.add_argument(name, type=Path, help="the checkpoint folder of a run")
    given = parser.parse_args(arguments)
    found = list(differences(given.RUN_A, given.RUN_B))
    for kind, text in found:
        print(f"{kind:<8} {text}")
    if not found:
        print("The same settings, versions, stories, figures and models, bit for bit")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
