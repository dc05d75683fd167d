"""What a report says first: what was trained, whether growth kept the function, what it took."""

from __future__ import annotations

import math
from dataclasses import dataclass

from command_line import quoted
from report.numbers import NONE, duration, exponent, gigabytes, is_number, millions, si
from report.past_run import PastPhase, PastRun

TABS = {"steps": "Steps", "tokens": "Tokens", "flops": "Compute", "seconds": "Time"}


@dataclass
class Verdict:
    """`kind` is good, bad or open."""

    kind: str
    text: str
    detail: str
    status: str
    go_on: str = ""


def verdict(past: PastRun) -> Verdict:
    """Did growth keep the function, and how far did the run come?"""
    checks = past.events("verification")
    n_boundaries = len(past.boundaries)
    jumps = [row["jump"] for row in past.boundaries if is_number(row["jump"])]
    detail = ""
    if n_boundaries:
        largest = max(map(abs, jumps), default=math.nan)
        passed = sum(bool(check["passed"]) for check in checks)
        detail = f"Largest jump in held-out loss {exponent(largest)} nats; {passed} of {len(checks)} checks passed"
        told = [row.get("same_story") for row in past.boundaries]
        if all(told):
            detail += "; the same story, token for token"
    if past.failures:
        kind, text = "bad", f"Growth failed: {', '.join(past.failures)}"
    elif n_boundaries:
        kind, text = "good", "Growth kept the function" + ("" if past.summary else " so far")
    else:
        kind, text = "open", "Not grown yet"
    return Verdict(kind, text, detail, status(past), go_on(past))


def status(past: PastRun) -> str:
    if past.summary:
        return "Complete"
    phase = past.current
    if not phase.steps:
        return "Not complete: no step was recorded"
    return (
        f"Not complete: it came to step {phase.steps[-1]['step'] + 1} of {phase.planned or '?'} in phase {phase.number}"
    )


def go_on(past: PastRun) -> str:
    """The command that goes on with a run that was stopped; empty for one that is complete, or has no state."""
    if past.summary or not past.can_resume:
        return ""
    return f"python train_tinystories.py --resume --checkpoint-dir {quoted(past.folder)}"


def story_of(past: PastRun) -> str:
    """What was trained, in a sentence."""
    phases = [phase for phase in past.phases if (phase.steps or phase.evals) and phase.total]
    if not phases:
        return ""
    first, last = phases[0], phases[-1]
    source = past.run.get("data", {}).get("source")
    text = f"A {first.phase.kind}{'' if first.phase.has_experts else ' model'} of {millions(first.total)} parameters"
    if last is not first:
        into = "one" if first.phase.has_experts else "a mixture of experts"
        text += f" became {into} of {millions(last.total)}, {millions(last.active)} of them active per token"
    return f"{text}, trained on {source}." if source else f"{text}."


def tiles(past: PastRun) -> list[tuple[str, str, str]]:
    """(label, figure, what belongs to it) of the first screen."""
    last = next((row for row in reversed(past.events("eval"))), None)
    places = past.last
    flops = total_flops(past)
    found = []
    if last:
        label = "Final held-out loss" if past.summary else "Held-out loss so far"
        found.append((label, f"{last['loss']:.3f}", f"nats a token, {last['bits_per_byte']:.3f} bits per byte"))
    speeds = [f"{si(phase.tokens / phase.seconds)}" for phase in past.phases if phase.tokens and phase.seconds]
    found.append(("Time", duration(total_seconds(past)), f"{' · '.join(speeds)} tokens a second" if speeds else ""))
    found.append(("Compute", si(flops, "FLOP") if flops else NONE, "counted, not measured"))
    found.append(("Tokens", si(places["tokens"]), f"in {places['steps']:,} steps"))
    return found


def total_seconds(past: PastRun) -> float:
    """Of the whole run where it is complete, else of its training so far."""
    return (past.summary or {}).get("seconds") or past.last["seconds"]


def total_flops(past: PastRun) -> float | None:
    return (past.summary or {}).get("flops") or past.last["flops"]


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


def squares(past: PastRun) -> list[Square]:
    phases = [phase for phase in past.phases if phase.total]
    largest = max((phase.total for phase in phases), default=1)
    return [
        Square(
            phase.number, phase.phase.kind,
            100 * math.sqrt(phase.total / largest), 100 * math.sqrt(phase.active / phase.total),
            millions(phase.total), millions(phase.active), bool(phase.steps or phase.evals),
        )
        for phase in phases
    ]  # fmt: skip


def phase_rows(past: PastRun) -> list[tuple[str, list[str]]]:
    """The table of the phases: what is in a line, and a cell for each."""

    def line(label: str, cell) -> tuple[str, list[str]]:
        return label, [cell(phase) for phase in past.phases]

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


def geometry(phase: PastPhase) -> str:
    g = phase.geometry
    return f"{g.d_model} × {g.n_layers} × {g.n_heads}" if g else NONE


def experts(phase: PastPhase) -> str:
    g = phase.geometry
    return f"{g.n_experts}, top {g.top_k}" if g and g.is_moe else NONE
