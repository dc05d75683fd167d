"""Axes of figures: what they span, and where their ticks are. All places are shares of the axis, 0 to 1."""

from __future__ import annotations

import math
from dataclasses import dataclass

from report.numbers import si

# Mantissas that are ticks of a logarithmic axis, and of which powers of ten: the first that are few enough.
LOG_TICKS = (((1, 1.5, 2, 3, 4, 5, 6, 8), 1), ((1, 2, 5), 1), ((1,), 1), ((1,), 3), ((1,), 10))
FEWEST_LOG_TICKS, MOST_LOG_TICKS = 3, 6
# Share of an axis beyond its last value; enough of it for the names of phases along the upper edge.
AIR, ROOM_FOR_NAMES = 0.06, 0.18


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, both among finite numbers, `low` below `high`, above 0 if logarithmic."""

    name: str
    low: float
    high: float
    ticks: list[tuple[float, str]]
    is_log: bool = False

    def share(self, value: float) -> float:
        low, high = self.low, self.high
        if self.is_log:
            value, low, high = math.log(value), math.log(low), math.log(high)
        return (value - low) / (high - low)

    @property
    def placed_ticks(self) -> list[tuple[float, str]]:
        return [(self.share(value), text) for value, text in self.ticks]


def linear(
    name: str, values: list[float], most: int = 4, low: float | None = None, exact: bool = False, above: float = AIR
) -> Axis:
    """An axis that holds all values, and `low` if given.

    Where they end it leaves some air, and the share `above` at its upper end; none if `exact`.
    """
    smallest, largest = min([*values, *([low] if low is not None else [])]), max(values)
    if smallest == largest:
        smallest, largest = smallest - (abs(smallest) or 1) / 2, largest + (abs(largest) or 1) / 2
    span = 0 if exact else largest - smallest
    smallest, largest = smallest - (AIR * span if smallest != low else 0), largest + above * span
    return Axis(name, smallest, largest, round_ticks(smallest, largest, most))


def round_ticks(low: float, high: float, most: int = 4) -> list[tuple[float, str]]:
    from matplotlib.ticker import MaxNLocator  # here, as it takes longer to import than to use

    ticks = MaxNLocator(nbins=most, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
    inside = [float(tick) for tick in ticks if low <= tick <= high]
    return list(zip(inside, tick_texts(inside)))


def logarithmic(name: str, values: list[float], above: float = AIR) -> Axis:
    """A logarithmic axis of values above 0; its ticks are those of a linear one where they span too little."""
    low, high = min(values), max(values)
    ratio = max(high / low, 1.02)
    low, high = low / ratio**AIR, low * ratio ** (1 + above)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for mantissas, every in LOG_TICKS:
        ticks = [m * 10.0**power for power in powers if power % every == 0 for m in mantissas]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) <= MOST_LOG_TICKS:
            break
    named = list(zip(ticks, tick_texts(ticks))) if len(ticks) >= FEWEST_LOG_TICKS else round_ticks(low, high)
    return Axis(name, low, high, named, is_log=True)


def duration_axis(seconds: list[float], most: int) -> tuple[Axis, float]:
    """An axis in a unit that suits, and by what seconds are divided to be on it."""
    longest = max(seconds)
    divisor, unit = next((d, u) for d, u in ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
                         if longest >= 3 * d or d == 1)  # fmt: skip
    return linear(f"training time, {unit}", [each / divisor for each in seconds], most, exact=True), divisor


def tick_texts(values: list[float]) -> list[str]:
    largest = max(map(abs, values), default=0)
    if largest >= 10_000:
        return [si(value) for value in values]
    return [f"{value:.6g}" if value == 0 or largest >= 1e-3 else f"{value:.1e}" for value in values]
