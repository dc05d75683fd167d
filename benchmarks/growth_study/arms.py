"""The arms of the study: where each begins, and when and how it grows.

An arm is a start and a list of growths. Shares are of the budget, and of the arm's learning rate.
"""

from __future__ import annotations

from dataclasses import dataclass

from config import ModelConfig
from models import count_parameters
from training.flops import step_flops
from training.outlook import ENOUGH_TOKENS

BATCH, CONTEXT = 8, 128
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


# Shares of the budget, and of the learning rate: before its last growth a model is trained to its end, as in the driver.
TO_MOE_AT, TO_TARGET_AT = 0.02, 0.83
LOW = 0.1
UPCYCLE_MIDDLE = Growth(TO_MOE_AT, MIDDLE, "upcycled")
UPCYCLE_SMALL = Growth(0.013, SMALL_MOE, "upcycled")
TO_MIDDLE_AT = 0.027
SMALL_TO_MIDDLE = Growth(TO_MIDDLE_AT, MIDDLE, "ours")


def at_the_peak(start: ModelConfig, to: ModelConfig, at: float, operator: str, **how) -> Arm:
    """A mixture of experts from the first step, grown once, with the rate at its peak before and after."""
    return Arm(start, (Growth(at, to, operator, **how),))


def to_target(operator: str, **how) -> Growth:
    """The last growth of every arm that ends as the target."""
    return Growth(TO_TARGET_AT, TARGET, operator, falls_to=LOW, peak=LOW, **how)


def grown_once(operator: str, **how) -> Arm:
    """As the driver does: dense, MoE, and both axes at once, here from the middle size."""
    return Arm(MIDDLE_DENSE, (UPCYCLE_MIDDLE, to_target(operator, **how)))


def in_depth(operator: str, **how) -> Arm:
    """As wide as the target from the first step, half as deep until the last growth."""
    start = SMALL.grown(4, 1)
    upcycle = Growth(0.08, start.upcycled(8, 2), "upcycled")
    return Arm(start, (upcycle, to_target(operator, **how)))


def auto(budget: float) -> Arm:
    """The choice of `--grow-when auto`: the middle size, or, where it suits the budget (FLOPs), the target; experts begin
    as copies."""
    tokens = budget / step_flops(TARGET, BATCH) * BATCH * CONTEXT
    is_small = tokens < ENOUGH_TOKENS * count_parameters(TARGET).active
    dense, size = (MIDDLE_DENSE, MIDDLE) if is_small else (MIDDLE_DENSE.grown(2, 2), TARGET)
    return Arm(dense, (Growth(0.0, size, "upcycled", falls_to=0.0),))


def arm_of(name: str, budget: float) -> Arm:
    arm = ARMS[name]
    return arm(budget) if callable(arm) else arm


ARMS = {
    "small MoE continued": Arm(SMALL, (UPCYCLE_SMALL,)),
    "middle size from scratch": Arm(MIDDLE),
    "middle size, upcycled": Arm(MIDDLE_DENSE, (UPCYCLE_MIDDLE,)),
    "target from scratch": Arm(TARGET),
    "target from scratch, half the rate": Arm(TARGET, lr=0.02),
    "target from scratch, twice the rate": Arm(TARGET, lr=0.08),
    "ours": grown_once("ours"),
    "ours, auto": auto,
    "ours without noise": grown_once("ours", noise=0.0),
    "ours in two steps": Arm(SMALL, (UPCYCLE_SMALL, SMALL_TO_MIDDLE, to_target("ours"))),
    "HyperCloning": grown_once("ours", optimizer="fresh", noise=0.0),
    "SPARKLING-style": grown_once("ours", optimizer="asymmetric", noise=0.0),
    "zero-copy": grown_once("zero_copy"),
    "naive growth": grown_once("naive", optimizer="fresh"),
    "late depth only": in_depth("ours"),
    "G_stack": in_depth("stacked", optimizer="fresh"),
    "target grown early": Arm(MIDDLE_DENSE, (Growth(0.013, MIDDLE, "upcycled"), Growth(0.026, TARGET, "ours"))),
    "target grown at a third": at_the_peak(MIDDLE, TARGET, 1 / 3, "zero_copy"),
    "early growth from dense": Arm(SMALL, (UPCYCLE_SMALL, SMALL_TO_MIDDLE)),
    "early growth": at_the_peak(SMALL_MOE, MIDDLE, TO_MIDDLE_AT, "ours"),
    "early growth, zero-copy": at_the_peak(SMALL_MOE, MIDDLE, TO_MIDDLE_AT, "zero_copy"),
    "early growth, random": at_the_peak(SMALL_MOE, MIDDLE, TO_MIDDLE_AT, "naive", optimizer="fresh"),
    "middle size grown at a sixth": at_the_peak(SMALL_MOE, MIDDLE, 1 / 6, "zero_copy"),
    "middle size grown at a sixth, random": at_the_peak(SMALL_MOE, MIDDLE, 1 / 6, "naive", optimizer="fresh"),
}
