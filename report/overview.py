"""What a report says first: what was trained, whether growth kept the function, what it took."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass

from report.numbers import NONE, duration, exponent, gigabytes, is_number, millions, si
from report.plot import NAMES
from report.record import Phase, Record

TABS = {"steps": "Steps", "tokens": "Tokens", "flops": "Compute", "seconds": "Time"}


@dataclass
class Verdict:
    """`kind` is good, bad or open."""

    kind: str
    text: str
    detail: str
    status: str
    go_on: str = ""


def verdict(record: Record) -> Verdict:
    """Did growth keep the function, and how far did the run come?"""
    checks = record.events("verification")
    n_boundaries = len(record.boundaries)
    jumps = [row["jump"] for row in record.boundaries if is_number(row["jump"])]
    detail = ""
    if n_boundaries:
        largest = max(map(abs, jumps), default=math.nan)
        passed = sum(bool(check["passed"]) for check in checks)
        detail = f"Largest jump in held-out loss {exponent(largest)} nats; {passed} of {len(checks)} checks passed"
        told = [row.get("same_story") for row in record.boundaries]
        if all(told):
            detail += "; the same story, token for token"
    if record.failures:
        kind, text = "bad", f"Growth failed: {', '.join(record.failures)}"
    elif n_boundaries:
        kind, text = "good", "Growth kept the function" + ("" if record.summary else " so far")
    else:
        kind, text = "open", "Not grown yet"
    return Verdict(kind, text, detail, status(record), go_on(record))


def status(record: Record) -> str:
    if record.summary:
        return "Complete"
    phase = record.current
    if not phase.steps:
        return "Not complete: no step was recorded"
    return (
        f"Not complete: it came to step {phase.steps[-1]['step'] + 1} of {phase.planned or '?'} in phase {phase.number}"
    )


def go_on(record: Record) -> str:
    """The command that goes on with a run that was stopped; empty for one that is complete, or has no state."""
    if record.summary or not record.can_resume:
        return ""
    return f"python train_tinystories.py --resume --checkpoint-dir {shlex.quote(str(record.folder))}"


def story_of(record: Record) -> str:
    """What was trained, in a sentence."""
    phases = [phase for phase in record.phases if (phase.steps or phase.evals) and phase.total]
    if not phases:
        return ""
    first, last = phases[0], phases[-1]
    source = record.run.get("data", {}).get("source")
    kinds = {1: "A dense model", 2: "A mixture of experts", 3: "A grown mixture of experts"}
    text = f"{kinds[first.number]} of {millions(first.total)} parameters"
    if last is not first:
        into = "a mixture of experts" if first.number == 1 else "one"
        text += f" became {into} of {millions(last.total)}, {millions(last.active)} of them active per token"
    return f"{text}, trained on {source}." if source else f"{text}."


def tiles(record: Record) -> list[tuple[str, str, str]]:
    """(label, figure, what belongs to it) of the first screen."""
    last = next((row for row in reversed(record.events("eval"))), None)
    places = record.end(3)
    flops = total_flops(record)
    found = []
    if last:
        label = "Final held-out loss" if record.summary else "Held-out loss so far"
        found.append((label, f"{last['loss']:.3f}", f"nats a token, {last['bits_per_byte']:.3f} bits per byte"))
    speeds = [f"{si(phase.tokens / phase.seconds)}" for phase in record.phases if phase.tokens and phase.seconds]
    found.append(("Time", duration(total_seconds(record)), f"{' · '.join(speeds)} tokens a second" if speeds else ""))
    found.append(("Compute", si(flops, "FLOP") if flops else NONE, "counted, not measured"))
    found.append(("Tokens", si(places["tokens"]), f"in {places['steps']:,} steps"))
    return found


def total_seconds(record: Record) -> float:
    """Of the whole run where it is complete, else of its training so far."""
    return (record.summary or {}).get("seconds") or record.end(3)["seconds"]


def total_flops(record: Record) -> float | None:
    return (record.summary or {}).get("flops") or record.end(3)["flops"]


@dataclass
class Square:
    """A model drawn to scale: areas are parameters. Sides in percent of the largest model's."""

    phase: int
    name: str
    side: float
    active_side: float
    total: str
    active: str
    is_reached: bool


def squares(record: Record) -> list[Square]:
    phases = [phase for phase in record.phases if phase.total]
    largest = max((phase.total for phase in phases), default=1)
    return [
        Square(
            phase.number, NAMES[phase.number],
            100 * math.sqrt(phase.total / largest), 100 * math.sqrt(phase.active / phase.total),
            millions(phase.total), millions(phase.active), bool(phase.steps or phase.evals),
        )
        for phase in phases
    ]  # fmt: skip


def phase_rows(record: Record) -> list[tuple[str, list[str]]]:
    """The table of the three phases: what is in a line, and its three cells."""

    def line(label: str, cell) -> tuple[str, list[str]]:
        return label, [cell(phase) for phase in record.phases]

    def shown(value, text) -> str:
        return text(value) if is_number(value) else NONE

    lines = [
        line("width × blocks × heads", geometry),
        line("experts", experts),
        line("parameters", lambda p: shown(p.total, millions)),
        line("active per token", lambda p: shown(p.active, millions)),
        line("steps", lambda p: f"{len(p.steps):,}"),
        line("tokens", lambda p: shown(p.tokens, si)),
        line("compute, FLOP", lambda p: shown(p.flops, si)),
        line("peak learning rate", lambda p: shown(p.peak_rate, lambda x: f"{x:g}")),
        line("held-out loss, first", lambda p: shown(p.loss_before, lambda x: f"{x:.4f}")),
        line("held-out loss, last", lambda p: shown(p.loss_after, lambda x: f"{x:.4f}")),
        line("time", lambda p: shown(p.seconds, duration)),
        line("tokens a second", lambda p: si(p.tokens / p.seconds) if p.tokens and p.seconds else NONE),
        line("memory, largest", lambda p: shown(p.memory, gigabytes)),
    ]  # fmt: skip
    return [(label, cells) for label, cells in lines if set(cells) != {NONE}]


def geometry(phase: Phase) -> str:
    g = phase.geometry
    return f"{g.d_model} × {g.n_layers} × {g.n_heads}" if g else NONE


def experts(phase: Phase) -> str:
    g = phase.geometry
    return f"{g.n_experts}, top {g.top_k}" if g and g.is_moe else NONE
