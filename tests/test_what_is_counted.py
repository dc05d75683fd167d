"""What a run's figures mean: tokens and FLOPs of what it did itself, held-out losses of the same stories."""

import shutil

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from config import ModelConfig, TrainingConfig
from hugging_face.model_card import model_card
from models import build_dense_model, build_moe_model, load_model
from phases import HISTORY_NAME, REPORT_NAME, phase_of
from report.history import read_history
from run.run_state import read_run_state
from tests.faults import kill_points
from tests.faults.runs import Workshop, resume
from training.flops import step_flops
from training.step import counts_first, prepare_training, train_step

# As the small runs of tests/faults are.
TOKENS_A_STEP, STEPS = 4 * 32, (40, 30, 30)


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Workshop:
    return Workshop.at(tmp_path_factory.mktemp("workshop"))


@pytest.mark.parametrize("phase", [2, 3])
def test_a_run_from_a_later_phase_counts_only_what_it_did(phase, shop, tmp_path):
    folder = tmp_path / "late"
    folder.mkdir()
    shutil.copy(shop.expected / phase_of(phase - 1).file, folder)
    outcome = shop.run(folder, "--start-phase", phase)
    assert outcome.code == 0, outcome.err
    rows = read_history(folder / HISTORY_NAME)
    steps = [row for row in rows if row["event"] == "step"]
    assert [row["tokens"] for row in steps] == [TOKENS_A_STEP * n for n in range(1, len(steps) + 1)]
    assert len(steps) == sum(STEPS[phase - 1 :])
    own = sum(n * step_flops(load_model(folder / phase_of(p).file).config, 4)
              for p, n in enumerate(STEPS, 1) if p >= phase)  # fmt: skip
    assert rows[-1]["flops"] == pytest.approx(own, rel=1e-9) and steps[-1]["flops"] == rows[-1]["flops"]
    assert next(row["tokens"] for row in rows if row["event"] == "boundary") == 0
    # The batches go on where those of the phases before ended.
    whole = read_history(shop.expected / HISTORY_NAME)
    first = next(row for row in whole if row["event"] == "step" and row["phase"] == phase)
    assert steps[0]["loss"] == pytest.approx(first["loss"], rel=1e-6)
    report = (folder / REPORT_NAME).read_text(encoding="utf-8")
    assert f"{TOKENS_A_STEP * len(steps) / 1e3:.3g}\N{NO-BREAK SPACE}k" in report
    card = model_card(load_model(folder / phase_of(3).file).config, folder / phase_of(3).file, "late")
    assert f"| {TOKENS_A_STEP * len(steps):,} |" in card


@pytest.mark.parametrize("build, n_experts", [(build_dense_model, 0), (build_moe_model, 4)])
def test_a_batch_in_parts_costs_the_pass_that_counts_choices(build, n_experts):
    """Beside torch's own counter, which counts attention in the kernel's way: a small part of this model."""
    geometry = ModelConfig(211, 96, 3, 2, n_experts=n_experts, context_length=16)
    tokens_BT = torch.randint(211, (8, 17), generator=torch.Generator().manual_seed(0))
    counted, measured = [], []
    for accumulate in (1, 4):
        config = TrainingConfig(batch_size=8, context_length=16, accumulate=accumulate, memory="full")
        model = build(geometry)
        optimizers = prepare_training(model, config, None, is_lean=False)
        with FlopCounterMode(display=False) as counter:
            train_step(model, optimizers, tokens_BT, 0.01, config)
        measured.append(counter.get_total_flops())
        counted.append(step_flops(geometry, 8, counts_first(geometry, config)))
    assert counted[1] - counted[0] == pytest.approx(measured[1] - measured[0], rel=0.05)
    assert (counted[1] > counted[0]) == (n_experts > 0)


def test_a_run_resumed_with_another_batch_size_measures_the_same_stories(shop, tmp_path):
    """Nothing is trained between the two measurements: the same model has the same loss, whatever the batch size."""
    flags = ["--steps-phase3", "0", "--eval-batches", "3"]
    stopped = tmp_path / "stopped"
    assert shop.run(stopped, *flags, prepare=lambda: kill_points.patch("after_checks:2")).code < 0
    assert read_run_state(stopped).position == 2.5, "the state after phase 2 was on the disk"
    found = {}
    for size in (8, 4, 2, 1, 5):
        folder = shutil.copytree(stopped, tmp_path / f"at{size}")
        outcome = resume(folder, "--batch-size", size)
        assert outcome.code == 0, outcome.err
        rows = read_history(folder / HISTORY_NAME)
        (boundary,) = [row for row in rows if row["event"] == "boundary" and row["to_phase"] == 3]
        found[size] = boundary["loss_before"]
        assert found[size] == pytest.approx(rows[-1]["phase2_final"], abs=2e-6), "measured before the stop, at 4"
    # fp32 means over windows in other groups: each loss is a mean of 12 windows, rounded about 1e-7 of itself.
    assert rows[0]["heldout_batch"] == 4
    assert max(found.values()) - min(found.values()) < 2e-6, found


def test_a_run_stopped_twice_still_measures_what_it_began_with(shop, tmp_path):
    folder = tmp_path / "run"
    assert shop.run(folder, prepare=lambda: kill_points.patch("between_two_steps:5")).code < 0
    assert resume(folder, "--batch-size", "2", prepare=lambda: kill_points.patch("after_checks:1")).code < 0
    assert read_run_state(folder).position == 2.5
    assert resume(folder, "--batch-size", "1", "--steps-phase3", "0").code == 0
    rows = read_history(folder / HISTORY_NAME)
    changes = [row["changes"] for row in rows if row["event"] == "resumed"]
    assert [change["batch_size"] for change in changes] == [[4, 2], [2, 1]]
    assert not any("heldout_batch" in change for change in changes)
    (boundary,) = [row for row in rows if row["event"] == "boundary" and row["to_phase"] == 3]
    assert boundary["loss_before"] == pytest.approx(rows[-1]["phase2_final"], abs=2e-6)
