"""A run as its history tells it, in the order in which a report asks."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from config import ModelConfig, TrainingConfig, UserError
from phases import PHASES, STATE_NAME, Phase
from report.history import history_of
from transfer.verify_growth_mechanics import LARGEST_JUMP

# What the x axis of a curve may be; a history of an earlier version has no `flops`.
AXES = ("steps", "tokens", "flops", "seconds")


@dataclass
class PastPhase:
    """One phase in figures; None where the history does not say.

    loss_before and loss_after are held-out, in nats a token, at its beginning and last; tokens and flops its own.
    """

    phase: Phase
    geometry: ModelConfig | None
    total: int | None
    active: int | None
    planned: int | None
    steps: list[dict]
    places: list[dict]  # of its steps
    evals: list[dict]
    loss_before: float | None = None
    tokens: float | None = None
    flops: float | None = None

    @property
    def number(self) -> int:
        return self.phase.number

    @property
    def loss_after(self) -> float | None:
        return self.evals[-1]["loss"] if self.evals else None

    @property
    def seconds(self) -> float | None:
        return self.steps[-1]["seconds"] if self.steps else None

    @property
    def peak_rate(self) -> float | None:
        return max((row["lr"] for row in self.steps), default=None)

    @property
    def memory(self) -> float | None:
        return max((row["memory_bytes"] for row in self.steps if row.get("memory_bytes")), default=None)


class PastRun:
    """All rows of a run's history, each step and measurement at its place in the whole run.

    A place is a dict with the keys of `AXES`; its `seconds` are those of training and measuring, without boundaries
    and stops.

    Raises:
        UserError: the folder holds no history, or a damaged one.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rows = history_of(folder)
        self.run = self.rows[0]
        self.config, self.parameters = dict(self.run["config"]), self.run.get("parameters", [None] * len(PHASES))
        for row in self.events("resumed"):
            self.config |= {name: now for name, (_, now) in row["changes"].items() if name in self.config}
            self.parameters = row.get("parameters", self.parameters)
        self.summary = next(iter(self.events("summary")), None)
        self._places: dict[tuple[int, int], dict] = {}
        self._ends: dict[int, dict] = {0: dict.fromkeys(AXES, 0)}
        self.place_steps()
        self.phases = [self.past_phase(phase) for phase in PHASES]

    def events(self, event: str) -> list[dict]:
        return [row for row in self.rows if row["event"] == event]

    def place_steps(self) -> None:
        rows, phase, before = self.events("step"), 0, 0.0
        if rows and rows[0]["phase"] > 1:
            # What had been counted before: nothing, or, in a history of an earlier version, the run that made its model.
            first, second = rows[0], rows[min(1, len(rows) - 1)]
            counted = {key: 2 * first[key] - second[key] for key in ("tokens", "flops") if key in first}
            self._ends[0] |= counted
        for n_steps, row in enumerate(rows, 1):
            if row["phase"] != phase:
                phase, before = row["phase"], self._ends[max(self._ends)]["seconds"]
            place = {"steps": n_steps, "tokens": row["tokens"], "flops": row.get("flops")}
            place["seconds"] = before + row["seconds"]
            self._places[phase, row["step"]] = self._ends[phase] = place

    def place(self, row: dict) -> dict:
        """Where a step was taken, or something measured after it."""
        phase = row["phase"]
        return self._places.get((phase, row.get("step", -1))) or self.end(phase)

    def end(self, phase: int) -> dict:
        """Where a phase ended, or has come so far."""
        return self._ends[max(number for number in self._ends if number <= phase)]

    def past_phase(self, phase: Phase) -> PastPhase:
        number = phase.number
        steps = [row for row in self.events("step") if row["phase"] == number]
        evals = [row for row in self.events("eval") if row["phase"] == number]
        count = self.parameters[number - 1] or {}
        geometries = self.geometries()
        past = PastPhase(
            phase, geometries[number - 1] if geometries else None,
            count.get("total"), count.get("active"), self.config.get(f"steps_phase{number}"), steps,
            [self._places[number, row["step"]] for row in steps], evals,
        )  # fmt: skip
        into = [row for row in self.boundaries if row["to_phase"] == number]
        past.loss_before = into[-1]["loss_after"] if into else (evals[0]["loss"] if len(evals) > 1 else None)
        if steps:
            start, end = self.end(number - 1), self.end(number)
            past.tokens = end["tokens"] - start["tokens"]
            past.flops = end["flops"] - start["flops"] if end["flops"] is not None else None
        return past

    def geometries(self) -> tuple[ModelConfig, ...] | None:
        known = {item.name for item in dataclasses.fields(TrainingConfig)}
        try:
            return TrainingConfig(**{k: v for k, v in self.config.items() if k in known}).phase_geometries(1)
        except (UserError, TypeError):  # of a version that had other rules
            return None

    @property
    def last(self) -> dict:
        """Where the run ended, or has come so far."""
        return self.end(len(PHASES))

    @property
    def boundaries(self) -> list[dict]:
        return self.events("boundary")

    def checks(self, to_phase: int) -> list[dict]:
        return [row for row in self.events("verification") if row["to_phase"] == to_phase]

    @property
    def failures(self) -> list[str]:
        """What says that growth changed the function; empty where it did not."""
        failed = [
            f"{row['check']} before phase {row['to_phase']}" for row in self.events("verification") if not row["passed"]
        ]
        for row in self.boundaries:
            into = f"before phase {row['to_phase']}"
            if row["jump"] is None or abs(row["jump"]) > LARGEST_JUMP:
                failed.append(f"jump {into}")
            if row.get("same_story") is False:
                failed.append(f"story {into}")
        return failed

    @property
    def current(self) -> PastPhase:
        """The last phase in which there was anything."""
        return next((phase for phase in reversed(self.phases) if phase.steps or phase.evals), self.phases[0])

    @property
    def can_resume(self) -> bool:
        return (self.folder / STATE_NAME).exists()
