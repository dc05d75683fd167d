"""How often one step of training makes the host wait for the device: the table, and that a new wait is seen."""

import dataclasses

import pytest
import torch

from config import PRESETS
from models import build_dense_model, build_moe_model, experts
from tests.devices.pretend_device import PretendDevice, Wait
from tests.devices.pretending import pretending
from training import step
from training.device import to_device
from training.step import prepare_training, train_step
from transfer.gradient_coverage import GradientCoverage
from transfer.liveness import liveness_report
from transfer.simple_growth import scale_bilaterally

CONFIG = dataclasses.replace(PRESETS["tiny"], d_model=32, n_heads=2, n_layers=2, n_experts=4, context_length=16)
BATCH = torch.randint(97, (4, 17), generator=torch.Generator().manual_seed(0))

# A batch of tokens goes to CUDA from pinned memory, by itself.
BATCH_TO_MPS = Wait("copy from the host", "training/device.py", "to_device")
# Where experts are computed one after another the host has to know their shares.
SHARES_OF_EXPERTS = Wait("copy to the host", "models/experts.py", "row_groups")

# Device, CUDA's capability, precision; waits of a step, and of each MoE layer in it.
STEPS = [
    ("cuda", (9, 0), torch.bfloat16, [], []),
    ("cuda", (10, 0), torch.bfloat16, [], []),
    ("cuda", (8, 0), torch.bfloat16, [], [SHARES_OF_EXPERTS]),
    ("cuda", (12, 0), torch.bfloat16, [], [SHARES_OF_EXPERTS]),
    ("cuda", (9, 0), None, [], [SHARES_OF_EXPERTS]),
    ("mps", (), torch.bfloat16, [BATCH_TO_MPS], [SHARES_OF_EXPERTS]),
    ("mps", (), None, [BATCH_TO_MPS], [SHARES_OF_EXPERTS]),
]


def geometry(is_moe: bool):
    dense = CONFIG.dense_geometry(vocab_size=97)
    return dense.upcycled(CONFIG.n_experts, CONFIG.top_k) if is_moe else dense


def model_on(device: PretendDevice, is_moe: bool):
    build = build_moe_model if is_moe else build_dense_model
    return build(geometry(is_moe)).to(device.kind)


def waits_of_a_step(device: PretendDevice, is_moe: bool, dtype: torch.dtype | None, mode: str) -> dict[Wait, int]:
    """Of the second, when all state is there."""
    config = dataclasses.replace(CONFIG, accumulate=2 if mode == "accumulate 2" else 1)
    model = model_on(device, is_moe)
    optimizers = prepare_training(model, config, dtype, is_lean=mode == "lean")
    for _ in range(2):
        device.forget()
        train_step(model, optimizers, to_device(BATCH, model.device), 0.01, config)
    optimizers[0].leave_parameters()
    return dict(device.waits)


@pytest.mark.parametrize("kind, capability, dtype, of_step, of_layer", STEPS)
@pytest.mark.parametrize("mode", ["full", "lean", "accumulate 2"])
def test_waits_of_a_step(kind, capability, dtype, of_step, of_layer, mode):
    with pretending(kind, capability) as device:
        for is_moe in (False, True):
            expected = {wait: 1 for wait in of_step}
            if is_moe:
                # Each of two parts passes twice: their choices are counted before the first of them learns.
                expected |= {wait: CONFIG.n_layers * (4 if mode == "accumulate 2" else 1) for wait in of_layer}
            assert waits_of_a_step(device, is_moe, dtype, mode) == expected


# Of the liveness report, twice a phase. The model has 2 old blocks and 1 new one, 8 matrices with clones, and 12 of
# which it takes the effective rank: MPS, without fp64, gets them to the host.
LIVENESS = {
    Wait("copy from the host", "transfer/liveness.py", "row_cosines"): 16,  # which rows are clones
    Wait("copy to the host", "transfer/liveness.py", "row_cosines"): 8,
    Wait("copy from the host", "transfer/liveness.py", "liveness_report"): 1,  # tokens for the routers
    Wait("copy to the host", "transfer/liveness.py", "expert_shares"): 3,
    Wait("copy to the host", "transfer/gradient_coverage.py", "_counts"): 2,
}
LIVENESS_ON = {
    "cuda": LIVENESS
    | {
        Wait("a number is read", "transfer/liveness.py", "effective_rank_share"): 36,
        Wait("_linalg_eigh", "transfer/liveness.py", "effective_rank_share"): 12,
    },
    "mps": LIVENESS
    | {Wait("copy to the host", "transfer/liveness.py", "effective_rank_share"): 12, SHARES_OF_EXPERTS: 3},
}


def watched(device: PretendDevice):
    """A grown model on the device, its old geometry, what watches its gradients, and a function that makes a step."""
    moe = model_on(device, is_moe=True)
    large = scale_bilaterally(moe, 2, 1)
    coverage = GradientCoverage(large, moe.config)
    optimizers = prepare_training(large, CONFIG, torch.bfloat16, is_lean=False)

    def make_step() -> dict[Wait, int]:
        device.forget()
        train_step(large, optimizers, to_device(BATCH, large.device), 0.01, CONFIG)
        coverage.steps += 1
        return dict(device.waits)

    make_step()
    return large, moe.config, coverage, make_step


@pytest.mark.parametrize("kind, of_step", [("cuda", {}), ("mps", {BATCH_TO_MPS: 1, SHARES_OF_EXPERTS: 3})])
def test_a_step_that_is_watched_waits_no_more_and_a_report_this_often(kind, of_step):
    with pretending(kind) as device:
        large, old, coverage, make_step = watched(device)
        assert make_step() == of_step
        device.forget()
        liveness_report(large, old, BATCH, coverage)
        assert dict(device.waits) == LIVENESS_ON[kind]


def test_a_wait_that_is_not_in_the_table_is_seen(monkeypatch):
    take_if = step.take_if

    def take_if_the_host_says_so(is_sound, optimizers):
        take_if(torch.tensor(bool(is_sound), device=is_sound.device), optimizers)

    def look_at_one_number(coverage, name, parameter):
        parameter.grad.max().item()

    with pretending("cuda") as device:
        with monkeypatch.context() as patch:
            patch.setattr(step, "take_if", take_if_the_host_says_so)
            of_step = waits_of_a_step(device, False, torch.bfloat16, "full")
            # Before the backward pass and before the step, each time there and back.
            assert {(wait.what, wait.function): n for wait, n in of_step.items()} == {
                ("a number is read", "take_if_the_host_says_so"): 2,
                ("copy from the host", "take_if_the_host_says_so"): 2,
            }
        with monkeypatch.context() as patch:
            patch.setattr(GradientCoverage, "look", look_at_one_number)
            *_, make_step = watched(device)
            assert {wait.function for wait in make_step()} == {"look_at_one_number"}
        device.forget()
        BATCH.to(device.place, non_blocking=True)
        assert sum(device.waits.values()) == 1, "the batch is not pinned"


def test_grouped_mm_without_a_kernel_is_seen(monkeypatch):
    monkeypatch.setattr(experts, "GROUPED_MM_CAPABILITIES", (8, 9, 10))
    with pretending("cuda", (8, 0)) as device:
        of_step = waits_of_a_step(device, True, torch.bfloat16, "full")
    # Two products forwards; backwards two of gradients and two of weights.
    assert sum(n for wait, n in of_step.items() if wait.what == "copy to the host") == 6 * CONFIG.n_layers
