"""How often one step of training makes the host wait for the device: the table, and that a new wait is seen."""

import dataclasses

import pytest
import torch

from config import PRESETS
from models import build_dense_model, build_moe_model
from tests.devices.pretend_device import PretendDevice, Wait
from tests.devices.pretending import pretending
from training import bad_steps, step
from training.device import to_device
from training.step import prepare_training, train_step
from transfer.liveness import GradientCoverage, liveness_report

CONFIG = dataclasses.replace(PRESETS["tiny"], d_model=32, n_heads=2, n_layers=2, n_experts=4, context_length=16)
BATCH = torch.randint(97, (4, 17), generator=torch.Generator().manual_seed(0))

# A batch of tokens goes to CUDA from pinned memory, by itself.
BATCH_TO_MPS = Wait("copy from the host", "training/device.py", "to_device")
# Where experts are computed one after another the host has to know their shares.
SHARES_OF_EXPERTS = Wait("copy to the host", "models/experts.py", "runs_of")

# device, CUDA's capability, precision: waits of a step, and of each MoE layer in it
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
                expected |= {wait: CONFIG.n_layers * (2 if mode == "accumulate 2" else 1) for wait in of_layer}
            assert waits_of_a_step(device, is_moe, dtype, mode) == expected
