"""Does growth pay? Every way to spend the same training compute on the same target, on real stories.

    python -m benchmarks.growth_study --data ../shared/tinystories/train.txt \\
        --valid-data ../shared/tinystories/valid.txt
    python -m benchmarks.growth_study_report

An arm is a start and a list of growths, and each budget is a run of its own. As in the last phases of the driver
the learning rate falls over the last 60 % of the stage before the last growth, and of the last stage, to zero there.
Growth arms that share a beginning share its run, and each is charged for it. Rows of arm, seed, budget, flops,
seconds, held-out loss and machine are added to benchmarks/results/growth_study.json as runs are finished: the study goes
on with those that are missing.

FLOPs are counted, not measured: 6 per active parameter and token, attention, and Muon's
orthogonalisation. Seconds are those of one CPU thread.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.measuring import cpu_model
from benchmarks.study_operators import OPERATORS
from command_line import OneLineParser
from config import ModelConfig, TrainingConfig, UserError
from data import load_data
from models import Transformer, build_dense_model, build_moe_model
from training.flops import step_flops
from training.heldout import heldout_loss
from training.optimizer import build_optimizers, read_moments, write_moments
from training.schedule import DECAY_SHARE
from training.step import train_step
from transfer.optimizer_growth import grow_optimizer_state

RESULTS = Path(__file__).parent / "results" / "growth_study.json"
BATCH, CONTEXT = 8, 128
WARMUP_STEPS = 20
EVALUATE_EVERY = 0.6e12  # FLOPs
CURVE_BATCHES, END_BATCHES = 6, 32

VOCABULARY = 4_097
SMALL = ModelConfig(VOCABULARY, 32, 2, 2, context_length=CONTEXT)
SMALL_MOE = SMALL.upcycled(8, 2)
MIDDLE_DENSE = SMALL.grown(2, 2)
MIDDLE = MIDDLE_DENSE.upcycled(8, 2)
TARGET = MIDDLE.grown(2, 2)


@dataclass(frozen=True)
class Growth:
    """One growth, and the learning rates around it, as shares of the arm's.

    at: the share of the budget after which it happens.
    falls_to: where the stage before it ends. peak: where the stage after it rises to.
    """

    at: float
    to: ModelConfig
    operator: str
    optimizer: str = "grown"
    noise: float = 1.0
    falls_to: float = 1.0
    peak: float = 1.0


@dataclass(frozen=True)
class Arm:
    start: ModelConfig
    growths: tuple[Growth, ...] = ()
    lr: float = 0.04


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
        optimizers = build_optimizers(model, weight_decay=0.1)
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
            state = grow_optimizer_state(read_moments(self.model, self.optimizers), old, growth.to, growth.optimizer)
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


# Shares of the budget, and of the learning rate: before its last growth a model is trained to its end, as in the driver.
TO_MOE_AT, TO_TARGET_AT = 0.02, 0.83
LOW = 0.1
UPCYCLE_MIDDLE = Growth(TO_MOE_AT, MIDDLE, "upcycled")
UPCYCLE_SMALL = Growth(0.013, SMALL_MOE, "upcycled")
SMALL_TO_MIDDLE = Growth(0.027, MIDDLE, "ours")


def to_target(operator: str, at: float = TO_TARGET_AT, peak: float = LOW, **how) -> Growth:
    """The last growth of every arm that ends as the target."""
    return Growth(at, TARGET, operator, falls_to=LOW, peak=peak, **how)


def grown_once(operator: str, **how) -> Arm:
    """As the driver does: dense, MoE, and both axes at once, here from the middle size."""
    return Arm(MIDDLE_DENSE, (UPCYCLE_MIDDLE, to_target(operator, **how)))


def in_depth(operator: str, **how) -> Arm:
    """As wide as the target from the first step, half as deep until the last growth."""
    start = SMALL.grown(4, 1)
    upcycle = Growth(0.08, start.upcycled(8, 2), "upcycled")
    return Arm(start, (upcycle, to_target(operator, **how)))


def upcycled_with(operator: str, noise: float) -> Arm:
    """The target's dense model, and one growth."""
    return Arm(SMALL.grown(4, 4), (to_target(operator, noise=noise),))


ARMS = {
    "target from scratch": Arm(TARGET),
    "small dense continued": Arm(SMALL),
    "small MoE continued": Arm(SMALL, (UPCYCLE_SMALL,)),
    "middle size from scratch": Arm(MIDDLE),
    "ours": grown_once("ours"),
    "dense upcycled only": upcycled_with("upcycled", 0.0),
    "Drop-Upcycling": upcycled_with("drop_upcycled", 0.5),
    "upcycled with differences": upcycled_with("paired_upcycled", 0.5),
    "naive growth": grown_once("naive", optimizer="fresh"),
    "predecessor's operator": grown_once("predecessor", optimizer="fresh", noise=1e-5),
    "G_stack": in_depth("stacked", optimizer="fresh"),
    "HyperCloning": grown_once("ours", optimizer="fresh", noise=0.0),
    "SPARKLING-style": grown_once("ours", optimizer="asymmetric", noise=0.0),
    "late depth only": in_depth("ours"),
    "ablation: to the target at 2/3": grown_once("ours", at=0.67),
    "ablation: the rate rises after growth": grown_once("ours", peak=0.5),
    "ablation: fresh optimizer": grown_once("ours", optimizer="fresh"),
    "ablation: asymmetric optimizer": grown_once("ours", optimizer="asymmetric"),
    "ablation: no noise": grown_once("ours", noise=0.0),
    "ablation: noise 0.2": grown_once("ours", noise=0.2),
    "ablation: in two steps": Arm(SMALL, (UPCYCLE_SMALL, SMALL_TO_MIDDLE, to_target("ours"))),
    "ablation: in two steps, the last one never": Arm(SMALL, (UPCYCLE_SMALL, SMALL_TO_MIDDLE)),
    "ablation: the last growth never": Arm(MIDDLE_DENSE, (UPCYCLE_MIDDLE,)),
}


def run_study(given: list[str] | None) -> None:
    """Raises UserError for flags or stories that cannot be used."""
    parser = OneLineParser(prog="python -m benchmarks.growth_study", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="training stories (.txt, .jsonl, .parquet)")
    parser.add_argument("--valid-data", required=True, help="held-out stories")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="which arms; all of them if not given")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--budgets", nargs="*", type=float, default=[6, 12, 24], help="training TFLOP")
    parser.add_argument("--lr", type=float, help="try another learning rate; its rows carry it in the arm's name")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--cache", type=Path, default=Path("data/cache/growth_study"))
    parser.add_argument("--worker", type=int, nargs=2, default=(0, 1), metavar=("I", "N"), help="every Nth run, from I")
    arguments = parser.parse_args(given)
    unknown = [name for name in arguments.arms if name not in ARMS]
    if unknown:
        parser.error(f"unknown arm {unknown[0]!r}; choose among: {', '.join(ARMS)}")
    torch.set_num_threads(1)
    results = Results(arguments.out)
    budgets = [tflop * 1e12 for tflop in arguments.budgets]
    runs = [(name, seed, budget) for seed in arguments.seeds for budget in budgets for name in arguments.arms]
    for name, seed, budget in runs[arguments.worker[0] :: arguments.worker[1]]:
        arm = ARMS[name]
        if arguments.lr:
            arm, name = dataclasses.replace(arm, lr=arguments.lr), f"{name}, lr {arguments.lr:g}"
        done = {(row["arm"], row["seed"], row["budget"]) for row in results.rows()}
        if (name, seed, budget) in done:
            continue
        config = TrainingConfig(
            data=arguments.data, valid_data=arguments.valid_data, tokenizer="builtin", seed=seed,
            batch_size=BATCH, context_length=CONTEXT, eval_batches=END_BATCHES,
        )  # fmt: skip
        data = load_data(config, say=lambda _: None)
        run_arm(name, arm, seed, budget, data, data.heldout_batches(), arguments.cache, results)


def main(arguments: list[str] | None = None) -> int:
    try:
        run_study(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
