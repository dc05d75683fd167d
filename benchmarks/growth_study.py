"""Does growth pay? Every way to spend the same training compute on the same target, on real stories.

    python -m benchmarks.growth_study --data ../shared/tinystories/train.txt \\
        --valid-data ../shared/tinystories/valid.txt
    python -m benchmarks.growth_study_report

An arm is a start and a list of growths. It trains at a constant learning rate; from its trunk a branch
leaves for each budget, whose rate falls to zero over the last fifth, and whose last held-out loss
counts. Growth arms that share a beginning share its run, and each is charged for it. Rows of arm, seed,
budget, flops, seconds and held-out loss are added to benchmarks/results/growth_study.json as arms are
finished: the study goes on with the arms that are missing.

FLOPs are counted, not measured: 6 per active parameter and token, attention, and Muon's
orthogonalisation. Seconds are those of one CPU thread.
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.study_operators import OPERATORS
from command_line import OneLineParser
from config import ModelConfig, TrainingConfig, UserError
from data import load_data
from models import Transformer, build_dense_model, build_moe_model
from training.evaluate import heldout_loss
from training.flops import step_flops
from training.optimizer import build_optimizers, read_state, write_state
from training.step import train_step
from transfer.optimizer_growth import grow_optimizer_state

RESULTS = Path(__file__).parent / "results" / "growth_study.json"
BATCH, CONTEXT = 8, 128
WARMUP_STEPS = 20
DECAY_SHARE = 0.2
EVALUATE_EVERY = 0.6e12  # FLOPs
TRUNK_BATCHES, BRANCH_BATCHES = 6, 32

VOCABULARY = 4_097
SMALL = ModelConfig(VOCABULARY, 32, 2, 2, context_length=CONTEXT)
SMALL_MOE = SMALL.upcycled(8, 2)
MIDDLE = SMALL_MOE.grown(2, 2)
TARGET = MIDDLE.grown(2, 2)


@dataclass(frozen=True)
class Growth:
    """`at` is the compute at which it happens, in TFLOP; `rate_share` what of the learning rate is left after it."""

    at: float
    to: ModelConfig
    operator: str
    optimizer: str = "grown"
    noise: float = 1.0
    rewarm_steps: int = 20
    rate_share: float = 1.0


@dataclass(frozen=True)
class Arm:
    start: ModelConfig
    growths: tuple[Growth, ...] = ()
    lr: float = 0.04


@dataclass
class Trainee:
    """A model in training, and what it has cost."""

    model: Transformer
    optimizers: list[torch.optim.Optimizer]
    steps: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    warm_from: int = 0
    warm_steps: int = WARMUP_STEPS
    rate_share: float = 1.0

    @classmethod
    def new(cls, model: Transformer, state: dict | None = None, **cost) -> Trainee:
        optimizers = build_optimizers(model, weight_decay=0.1)
        write_state(model, optimizers, state or {})
        return cls(model, optimizers, **cost)

    def copy(self) -> Trainee:
        state = copy.deepcopy(read_state(self.model, self.optimizers))
        return Trainee.new(copy.deepcopy(self.model), state, **self.cost)

    @property
    def cost(self) -> dict:
        """All but the model and its optimizers."""
        names = ("steps", "flops", "seconds", "warm_from", "warm_steps", "rate_share")
        return {name: getattr(self, name) for name in names}

    def grown(self, growth: Growth, seed: int) -> Trainee:
        start = time.process_time()
        old = self.model.config
        model = OPERATORS[growth.operator](self.model, growth.to, growth.noise, seed)
        state = {}
        if growth.optimizer != "fresh":
            state = grow_optimizer_state(read_state(self.model, self.optimizers), old, growth.to, growth.optimizer)
        seconds = self.seconds + time.process_time() - start
        return Trainee.new(
            model, state, steps=self.steps, flops=self.flops, seconds=seconds, warm_from=self.steps,
            warm_steps=growth.rewarm_steps, rate_share=self.rate_share * growth.rate_share,
        )  # fmt: skip

    def step(self, data, lr: float, budget: float | None) -> None:
        start = time.process_time()
        share = self.rate_share * min(1.0, (self.steps - self.warm_from + 1) / (self.warm_steps + 1))
        if budget is not None:
            share *= min(1.0, max(0.0, (budget - self.flops) / (DECAY_SHARE * budget)))
        train_step(self.model, self.optimizers, data.train_batch(self.steps), lr * share, data.config)
        self.steps += 1
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
            machine = f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, one thread a run"
            # An arm that is run again, for more budgets say, replaces its rows.
            again = {(row["arm"], row["seed"]) for row in rows}
            kept = [row for row in self.rows() if (row["arm"], row["seed"]) not in again]
            content = {"machine": machine, "rows": kept + rows}
            temporary = self.path.with_suffix(".tmp")
            text = ",\n".join(json.dumps(row) for row in content["rows"])
            temporary.write_text(f'{{"machine": {json.dumps(machine)},\n"rows": [\n{text}\n]}}\n')
            temporary.replace(self.path)


def run_arm(name: str, arm: Arm, seed: int, budgets: list[float], data, heldout, cache: Path, results: Results) -> None:
    """Trains one arm over all budgets and adds its rows when all of them are there."""
    longest = max(budgets)
    trainee, curve, rows, reached = begin(arm, seed, budgets, data.config, cache)
    due = trainee.flops + EVALUATE_EVERY if curve else 0.0
    growths = list(arm.growths[reached:])
    branches = sorted(budgets)[len(rows) :]
    bar = tqdm(total=longest / 1e12, desc=f"{name}, seed {seed}", unit="TFLOP", disable=None)

    def measure(trainee: Trainee, budget: float | None) -> dict:
        return {
            "arm": name, "seed": seed, "budget": budget, "flops": trainee.flops, "seconds": round(trainee.seconds, 1),
            "loss": heldout_loss(trainee.model, heldout[: TRUNK_BATCHES if budget is None else BRANCH_BATCHES]), "steps": trainee.steps, "width": trainee.model.config.d_model,
        }  # fmt: skip

    while branches:
        while branches and trainee.flops >= (1 - DECAY_SHARE) * branches[0]:
            budget = branches.pop(0)
            branch = trainee.copy() if branches else trainee
            while branch.flops < budget:
                branch.step(data, arm.lr, budget)
            rows.append(measure(branch, budget))
            tqdm.write(f"{name:<28} seed {seed} budget {budget / 1e12:5.1f} TFLOP loss {rows[-1]['loss']:.4f} "
                       f"steps {branch.steps} seconds {branch.seconds:.0f}")  # fmt: skip
        if not branches:
            break
        if growths and trainee.flops >= growths[0].at * 1e12:
            key = prefix_key(arm, seed, budgets, len(arm.growths) - len(growths), data.config)
            if not curve or curve[-1]["flops"] < trainee.flops:
                curve.append(measure(trainee, None))
            save_prefix(cache / key, trainee, curve, rows)
            trainee = trainee.grown(growths.pop(0), seed)
            curve.append(measure(trainee, None))
        trainee.step(data, arm.lr, None)
        bar.update(trainee.flops / 1e12 - bar.n)
        if trainee.flops >= due:
            curve.append(measure(trainee, None))
            due = trainee.flops + EVALUATE_EVERY
    bar.close()
    results.add([{**row, "arm": name} for row in curve + rows])


def prefix_key(arm: Arm, seed: int, budgets: list[float], n_growths: int, config: TrainingConfig) -> str:
    """Names the state just before growth number `n_growths` (from 0): equal beginnings, equal names."""
    at = arm.growths[n_growths].at
    # Their branches lie before the growth, and so do their rows.
    branched = [budget for budget in sorted(budgets) if (1 - DECAY_SHARE) * budget <= at * 1e12]
    text = repr((arm.start, arm.lr, arm.growths[:n_growths], at, seed, branched, EVALUATE_EVERY, config))
    return hashlib.sha256(text.encode()).hexdigest()[:16] + ".pt"


def save_prefix(path: Path, trainee: Trainee, curve: list[dict], rows: list[dict]) -> None:
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}")
    content = {
        "config": dataclasses.asdict(trainee.model.config),
        "weights": trainee.model.state_dict(),
        "state": read_state(trainee.model, trainee.optimizers),
        "cost": trainee.cost,
        "curve": curve,
        "rows": rows,
    }
    torch.save(content, temporary)
    temporary.replace(path)


def begin(
    arm: Arm, seed: int, budgets: list[float], config: TrainingConfig, cache: Path
) -> tuple[Trainee, list[dict], list[dict], int]:
    """The arm's longest beginning that is on disk, its rows so far, and how many growths lie before it."""
    for reached in reversed(range(len(arm.growths))):
        path = cache / prefix_key(arm, seed, budgets, reached, config)
        if path.exists():
            saved = torch.load(path, weights_only=True)
            model = Transformer.empty(ModelConfig(**saved["config"]))
            model.load_state_dict(saved["weights"])
            return Trainee.new(model, saved["state"], **saved["cost"]), saved["curve"], saved["rows"], reached
    build = build_moe_model if arm.start.is_moe else build_dense_model
    return Trainee.new(build(arm.start, seed)), [], [], 0


UPCYCLE = Growth(0.16, SMALL_MOE, "upcycled")
TO_MIDDLE_AT, TO_TARGET_AT = 0.33, 8.0


def in_two_steps(operator: str, to_target_at: float = TO_TARGET_AT, **how) -> Arm:
    """Dense, MoE, the middle size, the target."""
    growths = Growth(TO_MIDDLE_AT, MIDDLE, operator, **how), Growth(to_target_at, TARGET, operator, **how)
    return Arm(SMALL, (UPCYCLE, *growths))


def from_shape(scale_factor: float, extra_layers: int, operator: str, **how) -> Arm:
    """An arm that grows one axis alone and so starts with the other one as the target has it."""
    start = SMALL.grown(scale_factor, extra_layers)
    # After some hundred steps, as the small one.
    upcycle = Growth(1.0, start.upcycled(8, 2), "upcycled")
    return Arm(start, (upcycle, Growth(TO_TARGET_AT, TARGET, operator, **how)))


def upcycled_with(operator: str, noise: float) -> Arm:
    """The target's dense model, and one growth."""
    return Arm(SMALL.grown(4, 4), (Growth(TO_TARGET_AT, TARGET, operator, noise=noise),))


ARMS = {
    "target from scratch": Arm(TARGET),
    "small dense continued": Arm(SMALL),
    "small MoE continued": Arm(SMALL, (UPCYCLE,)),
    "middle size from scratch": Arm(MIDDLE),
    "ours": in_two_steps("ours"),
    "dense upcycled only": upcycled_with("upcycled", 0.0),
    "Drop-Upcycling": upcycled_with("drop_upcycled", 0.5),
    "upcycled with differences": upcycled_with("paired_upcycled", 0.5),
    "naive growth": in_two_steps("naive", optimizer="fresh"),
    "predecessor's operator": in_two_steps("predecessor", optimizer="fresh", noise=1e-5),
    "G_stack": from_shape(4, 1, "stacked", optimizer="fresh"),
    "HyperCloning": from_shape(2, 4, "ours", optimizer="fresh", noise=0.0),
    "SPARKLING-style": from_shape(2, 4, "ours", optimizer="asymmetric", noise=0.0, rewarm_steps=100),
    "late depth only": from_shape(4, 1, "ours"),
    "ablation: in one step": Arm(SMALL, (UPCYCLE, Growth(TO_TARGET_AT, TARGET, "ours"))),
    "ablation: to the target at 4": in_two_steps("ours", 4.0),
    "ablation: fresh optimizer": in_two_steps("ours", optimizer="fresh"),
    "ablation: asymmetric optimizer": in_two_steps("ours", optimizer="asymmetric"),
    "ablation: no noise": in_two_steps("ours", noise=0.0),
    "ablation: noise 0.2": in_two_steps("ours", noise=0.2),
    "ablation: half the rate in the target": Arm(
        SMALL,
        (UPCYCLE, Growth(TO_MIDDLE_AT, MIDDLE, "ours"), Growth(TO_TARGET_AT, TARGET, "ours", rate_share=0.5)),
    ),
    "ablation: no re-warming": in_two_steps("ours", rewarm_steps=0),
    "ablation: re-warming over 100 steps": in_two_steps("ours", rewarm_steps=100),
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
    runs = [(name, seed) for seed in arguments.seeds for name in arguments.arms]
    for name, seed in runs[arguments.worker[0] :: arguments.worker[1]]:
        arm = ARMS[name]
        if arguments.lr:
            arm, name = dataclasses.replace(arm, lr=arguments.lr), f"{name}, lr {arguments.lr:g}"
        done = {(row["arm"], row["seed"], row["budget"]) for row in results.rows()}
        if (name, seed, max(budgets)) in done:
            continue
        config = TrainingConfig(
            data=arguments.data, valid_data=arguments.valid_data, tokenizer="builtin", seed=seed,
            batch_size=BATCH, context_length=CONTEXT, eval_batches=BRANCH_BATCHES,
        )  # fmt: skip
        data = load_data(config, say=lambda _: None)
        run_arm(name, arm, seed, budgets, data, data.heldout_batches(), arguments.cache, results)


def main(arguments: list[str] | None = None) -> int:
    try:
        run_study(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
