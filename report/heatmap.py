"""How evenly the routers used the experts: for each layer a map, time to the right, expert by expert.

A cell is an expert's share of the slots over the even share 1 / n_experts. Cells of one shade are one path, so that
maps of many layers stay small.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from phases import PHASES
from report.axes import Axis
from report.charts import UNITS
from transfer.growth_maps import block_origins

# Shades go from -4 (a quarter of the even share, or less) to 4 (four times as much, or more), two to a factor of 2.
DARKEST = 4
# The last phase whose model is larger than the one before: what is new came with it.
GROWN = next((phase for phase in reversed(PHASES) if phase.made_by == "grow"), PHASES[-1])
MOST_CELLS, MOST_COLUMNS, MOST_ROWS, MOST_LAYERS = 24_000, 120, 64, 24


@dataclass
class Heatmap:
    """One layer. `paths` are by shade; `smallest` and `largest` are the shares of the last measurement."""

    layer: int
    note: str
    n_experts: int
    smallest: float
    largest: float
    paths: dict[int, str] = field(default_factory=dict)


def shade(share: float, n_experts: int) -> int:
    ratio = share * n_experts
    return DARKEST * (1 if ratio > 1 else -1) if not 2**-2 < ratio < 2**2 else round(2 * math.log2(ratio))


def heatmaps(shares: list[tuple[float, list[list[float]]]], x: Axis) -> tuple[list[Heatmap], int]:
    """A map for each layer of the last model, or for an even choice among them, and how many layers that has.

    Args:
        shares: (x, share by layer and expert), in order. A layer that growth has moved keeps its line.
    """
    n_layers = len(shares[-1][1])
    layers = range(n_layers)
    if n_layers > MOST_LAYERS:
        layers = [round(i * (n_layers - 1) / (MOST_LAYERS - 1)) for i in range(MOST_LAYERS)]
    n_rows = min(MOST_ROWS, len(shares[-1][1][0]))
    n_columns = max(8, min(MOST_COLUMNS, MOST_CELLS // (len(layers) * n_rows)))
    columns: list[list] = [[] for _ in range(n_columns)]
    for at, by_layer in shares:
        column = int(n_columns * x.share(at))
        columns[max(0, min(n_columns - 1, column))].append(by_layer)
    maps = [layer_map(columns, layer, n_layers, n_rows) for layer in layers]
    return maps, n_layers


def layer_map(columns: list[list], layer: int, n_layers: int, n_rows: int) -> Heatmap:
    """The map of one layer; a column without a measurement repeats the one before it."""
    cells: dict[tuple[int, int], int] = {}
    is_new, last = False, None
    for column, measured in enumerate(columns):
        found = []
        for by_layer in measured:
            origin = origin_of(layer, len(by_layer), n_layers)
            if origin is None:
                is_new, last = True, None
            else:
                found.append(by_layer[origin])
        last = [sum(each) / len(found) for each in zip(*found)] if found else last
        if last:
            for row, share in enumerate(in_rows(last, n_rows)):
                cells[column, row] = shade(share, len(last))
    paths: dict[int, list[str]] = {}
    for row in range(n_rows):
        column = 0
        while column < len(columns):
            level, start = cells.get((column, row)), column
            while column < len(columns) and cells.get((column, row)) == level:
                column += 1
            if level is not None:
                paths.setdefault(level, []).append(rectangle(start, column, row, len(columns), n_rows))
    last = last or [0.0]
    return Heatmap(
        layer, f"new in phase {GROWN.number}" if is_new else "", len(last), min(last), max(last),
        {level: "".join(paths[level]) for level in sorted(paths)},
    )  # fmt: skip


def origin_of(layer: int, n_layers: int, n_layers_now: int) -> int | None:
    """Which layer a layer of today was when the model had `n_layers`; None where it was not there yet."""
    return block_origins(n_layers, n_layers_now - n_layers)[layer]


def in_rows(shares: list[float], n_rows: int) -> list[float]:
    """As many means of neighbouring experts as there are rows."""
    bounds = [len(shares) * row // n_rows for row in range(n_rows + 1)]
    return [sum(shares[start:end]) / (end - start) for start, end in zip(bounds, bounds[1:])]


def rectangle(start: int, end: int, row: int, n_columns: int, n_rows: int) -> str:
    left, right = (round(UNITS * column / n_columns, 1) for column in (start, end))
    top, bottom = (round(UNITS * each / n_rows, 1) for each in (row, row + 1))
    return f"M{left:g} {top:g}H{right:g}V{bottom:g}H{left:g}z"
