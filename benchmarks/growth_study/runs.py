"""A run of the study: one arm trained for one budget, which adds its rows to the results file.

As in the last phases of the driver the learning rate falls over the last 60 % of the stage before the last growth, and of
the last stage, to zero there. Arms that share a beginning share its run, and each is charged for it.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.growth_study.arms import BATCH, Arm, Growth
from benchmarks.growth_study.operators import OPERATORS
from benchmarks.measuring import cpu_model
from config import ModelConfig, TrainingConfig
from models import Transformer, build_dense_model, build_moe_model
from training.flops import step_flops
from training.heldout import heldout_loss
from training.optimizer import build_optimizers, read_moments, write_moments
from training.schedule import DECAY_SHARE
from training.step import train_step
from transfer.optimizer_growth import grow_optimizer_state

WARMUP_STEPS = 20
EVALUATE_EVERY = 0.6e12  # FLOPs
CURVE_BATCHES, END_BATCHES = 6, 32


@dataclass(frozen=True)
class Stage:
    """Training of one geometry, from one compute to another; rates are shares of the arm's."""

    begin: float
    end: float
    start: float
    peak: float
    falls_to: float

    def rate(self, flops: float, steps: int) -> float:
        """From `start` to `peak` over the first steps, then as far along the fall as the compute is."""
        if steps < WARMUP_STEPS:
            return self.start + (self.peak - self.start) * (steps + 1) / (WARMUP_STEPS + 1)
        left = min(1.0, max(0.0, self.end - flops) / (DECAY_SHARE * (self.end - self.begin)))
        return self.falls_to + (self.peak - self.falls_to) * left


def stages(arm: Arm, budget: float) -> list[Stage]:
    """One more than the arm has growths."""
    ends = [growth.at * budget for growth in arm.growths] + [budget]
    peaks = [1.0, *(growth.peak for growth in arm.growths)]
    falls = [*(growth.falls_to for growth in arm.growths), 0.0]
    return [Stage(*rates) for rates in zip([0.0, *ends], ends, [0.0, *falls], peaks, falls)]


@dataclass
class Trainee:
    """A model in training, and what it has cost; `stage_steps` counts those since it grew."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    steps: int = 0
    stage_steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0

    @classmethod
    def new(cls, model: Transformer, state: dict | None = None, **cost) -> Trainee:
        optimizers = build_optimizers(model, weight_decay=0.1, tokens=BATCH * model.config.context_length)
        write_moments(model, optimizers, state or {})
        return cls(model, optimizers, **cost)

    @property
    def cost(self) -> dict:
        """What it has cost so far."""
        return {name: getattr(self, name) for name in ("steps", "flops", "seconds")}

    def grown(self, growth: Growth, seed: int) -> Trainee:
        start = time.process_time()
        old = self.model.config
        model = OPERATORS[growth.operator](self.model, growth.to, growth.noise, seed)
        state = {}
        if growth.optimizer != "fresh":
            moments, is_cloned = read_moments(self.model, self.optimizers), growth.operator != "zero_copy"
            state = grow_optimizer_state(moments, old, growth.to, growth.optimizer, is_cloned=is_cloned)
        seconds = self.seconds + time.process_time() - start
        return Trainee.new(model, state, steps=self.steps, flops=self.flops, seconds=seconds)

    def step(self, data, rate: float) -> None:
        start = time.process_time()
        train_step(self.model, self.optimizers, data.train_batch(self.steps), rate, data.config)
        self.steps += 1
        self.stage_steps += 1
        self.flops += step_flops(self.model.config, BATCH)
        self.seconds += time.process_time() - start


class Results:
    """Rows on disk, appended by several processes."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self) -> list[dict]:
        return json.loads(self.path.read_text())["rows"] if self.path.exists() else []

    def add(self, rows: list[dict]) -> None:
        with open(self.path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            again = {(row["arm"], row["seed"], row["budget"]) for row in rows}
            kept = [row for row in self.rows() if (row["arm"], row["seed"], row["budget"]) not in again]
            temporary = self.path.with_suffix(".tmp")
            text = ",\n".join(json.dumps(row) for row in kept + rows)
            temporary.write_text(f'{{"rows": [\n{text}\n]}}\n')
            temporary.replace(self.path)


def run_arm(name: str, arm: Arm, seed: int, budget: float, data, heldout, cache: Path, results: Results) -> None:
    """Trains one arm for one budget (FLOPs) and adds its row, with its curve on the way if no longer run is there."""
    trainee, curve, reached = begin(arm, seed, budget, data.config, cache)
    due = trainee.flops

    def measure(budget: float | None) -> dict:
        batches = heldout[: CURVE_BATCHES if budget is None else END_BATCHES]
        return {
            "arm": name, "seed": seed, "budget": budget, "flops": trainee.flops, "seconds": round(trainee.seconds, 1),
            "loss": heldout_loss(trainee.model, batches), "steps": trainee.steps, "width": trainee.model.config.d_model,
            "machine": f"{cpu_model()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a run",
        }  # fmt: skip

    with tqdm(total=budget / 1e12, desc=f"{name}, seed {seed}", unit="TFLOP", disable=None) as bar:
        for number, stage in list(enumerate(stages(arm, budget)))[reached:]:
            if number > 0:
                growth = arm.growths[number - 1]
                save_prefix(cache / prefix_key(arm, seed, budget, number - 1, data.config), trainee, curve)
                trainee = trainee.grown(growth, seed)
                curve.append(measure(None))
            while trainee.flops < stage.end:
                trainee.step(data, arm.lr * stage.rate(trainee.flops, trainee.stage_steps))
                bar.update(trainee.flops / 1e12 - bar.n)
                if trainee.flops >= due:
                    curve.append(measure(None))
                    due = trainee.flops + EVALUATE_EVERY
    end = measure(budget)
    tqdm.write(f"{name:<28} seed {seed} budget {budget / 1e12:5.1f} TFLOP loss {end['loss']:.4f} "
               f"steps {end['steps']} seconds {end['seconds']:.0f}")  # fmt: skip
    budgets = [row["budget"] or 0 for row in results.rows() if (row["arm"], row["seed"]) == (name, seed)]
    is_longest = budget >= max(budgets, default=0)
    results.add([{**row, "arm": name} for row in curve if is_longest] + [end])


def prefix_key(arm: Arm, seed: int, budget: float, n_growths: int, config: TrainingConfig) -> str:
    """Names the state just before growth number `n_growths` (from 0): equal beginnings, equal names."""
    text = repr((arm.start, arm.lr, arm.growths[:n_growths], stages(arm, budget)[: n_growths + 1], seed, config))
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ".pt"


def save_prefix(path: Path, trainee: Trainee, curve: list[dict]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    content = {
        "config": dataclasses.asdict(trainee.model.config),
        "weights": trainee.model.state_dict(),
        "state": read_moments(trainee.model, trainee.optimizers),
        "cost": trainee.cost,
        "curve": curve,
    }
    torch.save(content, temporary)
    temporary.replace(path)


def begin(arm: Arm, seed: int, budget: float, config: TrainingConfig, cache: Path) -> tuple[Trainee, list[dict], int]:
    """The arm's longest beginning that is on disk, its curve so far, and the stage that comes next."""
    for reached in reversed(range(len(arm.growths))):
        path = cache / prefix_key(arm, seed, budget, reached, config)
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model = Transformer.empty(ModelConfig(**saved["config"]))
            model.load_state_dict(saved["weights"])
            return Trainee.new(model, saved["state"], **saved["cost"]), saved["curve"], reached + 1
    build = build_moe_model if arm.start.is_moe else build_dense_model
    return Trainee.new(build(arm.start, seed)), [], 0
