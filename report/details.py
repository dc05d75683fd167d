"""What a report says of checks, settings, the machine, and what happened on the way."""

from __future__ import annotations

import time

from config import PRESETS, SETTINGS, TrainingConfig
from report.numbers import NONE, figure, is_number, percent
from report.overview import geometry
from report.past_run import PastRun

CHECKS = {
    "functional": "the same residuals, logits and loss as before",
    "rope": "every head compares positions as the head that it copies",
    "router": "every token keeps its experts",
    "symmetry": "the copies receive different gradients, so they will part",
}
# Of the `run` row.
MACHINE = ("device", "machine", "threads", "precision", "memory", "ranks", "torch", "python", "numpy", "commit")
MOST_LINES = 20


def growth_of(past: PastRun, boundary: dict) -> str:
    """What became of what at a boundary."""
    old, new = (past.phases[boundary[key] - 1] for key in ("from_phase", "to_phase"))
    if not (old.geometry and new.geometry):
        return new.phase.title
    if new.phase.made_by == "upcycle":
        return f"every MLP becomes {new.geometry.n_experts} experts"
    return f"{geometry(old)} becomes {geometry(new)}"


def check_figures(row: dict) -> list[tuple[str, str]]:
    """A check's own figures, in words."""
    own = {k: v for k, v in row.items() if k not in ("event", "time", "to_phase", "check", "passed", "reason")}
    return [(name.replace("_", " "), figure(value)) for name, value in own.items()]


def coverage(past: PastRun) -> list[str]:
    """How many of the new parameters had a gradient, as far as it was watched."""
    return [
        f"Phase {row['phase']}: {percent(1 - row['never_touched_share'])} of {row['new_parameters']:,} new parameters "
        f"had a gradient by step {row['coverage_steps']}."
        for row in past.events("liveness")
        if is_number(row.get("never_touched_share")) and row.get("new_parameters")
    ]


def missing_figures(charts: list) -> str:
    """Which of the figures of training could not be drawn."""
    there = {chart.title for chart in charts}
    return ", ".join(
        title for title in ("Memory", "Load-balancing loss", "Router z-loss") if title not in there
    ).lower()


def events(past: PastRun) -> list[str]:
    """Skipped steps, and resumes with other settings."""
    found = [
        f"Phase {row['phase']}, step {row['step']}: went on with "
        + ", ".join(f"{name} {was} → {now}" for name, (was, now) in row["changes"].items())
        for row in past.events("resumed")
    ]
    skipped = [row for row in past.events("step") if row.get("skipped")]
    for row in skipped[:MOST_LINES]:
        found.append(f"Phase {row['phase']}, step {row['step']}: skipped, as its loss or gradient was not sound")
    if len(skipped) > MOST_LINES:
        found.append(f"and {len(skipped) - MOST_LINES:,} more skipped steps")
    return found


def told(sample: dict) -> str:
    """A story without the prompt that it begins with."""
    return sample["story"].removeprefix(sample["prompt"])


def settings(past: PastRun) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """All settings by group: name, value, and whether it is another than the preset's."""
    preset = PRESETS.get(past.config.get("preset"), TrainingConfig())
    groups: dict[str, list] = {}
    for name, value in past.config.items():
        group = SETTINGS[name].group.split(" (")[0] if name in SETTINGS else "Of another version"
        is_own = name in SETTINGS and name not in ("checkpoint_dir", "preset") and value != getattr(preset, name)
        groups.setdefault(group, []).append((name, str(value), is_own))
    return list(groups.items())


def machine(past: PastRun) -> list[tuple[str, str]]:
    run, data = past.run, past.run.get("data", {})
    commit = str(run.get("commit", "")).removesuffix("-dirty") or NONE
    found = [("started", time.strftime("%Y-%m-%d %H:%M", time.localtime(run["time"])))]
    found += [(name, str(run[name]).replace(commit, commit[:12])) for name in MACHINE if run.get(name)]
    found += [("stories", str(data["source"]))] if "source" in data else []
    found += [("tokenizer", str(data["tokenizer"]))] if "tokenizer" in data else []
    for split, name in (("train", "training"), ("valid", "held-out")):
        if isinstance(data.get(split), dict) and "n_stories" in data[split]:
            found.append((f"{name} stories", f"{data[split]['n_stories']:,}, {data[split]['n_tokens']:,} tokens"))
    return found
