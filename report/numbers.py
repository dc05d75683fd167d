"""Numbers as people read them."""

from __future__ import annotations

import math

NONE = "–"
PREFIXES = ("", "k", "M", "G", "T", "P", "E", "Z")


def is_number(value) -> bool:
    """Whether it is one, and finite."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def si(value: float, unit: str = "") -> str:
    """Three digits, and the prefix of the thousands: 16.6 T."""
    value, thousands = float(f"{value:.3g}"), 0
    while abs(value) >= 1000 and thousands < len(PREFIXES) - 1:
        value, thousands = value / 1000, thousands + 1
    return f"{value:.3g}\N{NO-BREAK SPACE}{PREFIXES[thousands]}{unit}".rstrip()


def per_second(value: float) -> str:
    """12.3k, 950, 1.25M."""
    return si(value).replace("\N{NO-BREAK SPACE}", "")


def millions(n: float) -> str:
    return f"{n / 1e6:,.2f}\N{NO-BREAK SPACE}M"


def gigabytes(n: float) -> str:
    return f"{n / 1e9:.2f}\N{NO-BREAK SPACE}GB"


def percent(share: float) -> str:
    return f"{100 * share:.1f}\N{NO-BREAK SPACE}%"


def duration(seconds: float) -> str:
    """The two largest units: 7 min 28 s."""
    seconds = round(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if seconds >= size:
            return (
                f"{seconds // size}\N{NO-BREAK SPACE}{unit} {seconds % size // smaller_size}\N{NO-BREAK SPACE}{smaller}"
            )
    return f"{seconds}\N{NO-BREAK SPACE}s"


def exponent(value: float) -> str:
    """1.2 × 10⁻⁷, which reads better than 1.2e-07; in one line."""
    if not value or not is_number(value):
        return "0" if value == 0 else "not finite"
    mantissa, power = f"{value:.1e}".split("e")
    superscript = str(int(power)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', '−')}\N{NO-BREAK SPACE}×\N{NO-BREAK SPACE}10{superscript}"


def loss(value: float | None) -> str:
    return f"{value:.6f}" if is_number(value) else "not finite"


def figure(value) -> str:
    if value is None:
        return "not finite"
    if isinstance(value, bool) or not is_number(value):
        return str(value)
    if isinstance(value, int):
        return f"{value:,}"
    return exponent(value) if value and abs(value) < 1e-3 else f"{value:.4g}"
