"""A loss or a gradient that is no number, or a gradient that explodes: skipped, counted, or the end of the run."""

import pytest
import torch

from models import load_model
from report.history import read_history
from run import start
from tests.faults.runs import resume
from training import bad_steps, step
from training.bad_steps import EXPLODED, MOST_IN_A_ROW, is_sound
from training.optimizer import read_moments
from training.step import prepare_training, train_step


def inject(harm, phase_steps):
    """Does `harm` to the loss of the steps with these numbers, counted over the whole run."""

    def prepare():
        original, calls = step.next_token_loss, 0

        def harmed(model, tokens):
            nonlocal calls
            loss, routing = original(model, tokens)
            calls += 1
            return (harm(loss) if calls - 1 in phase_steps else loss), routing

        step.next_token_loss = harmed
        start.duration_line = lambda *_: ""  # which takes steps of its own, to time them

    return prepare


HARMS = {
    "nan": lambda loss: loss * float("nan"),
    "infinite": lambda loss: loss * float("inf"),
    "exploding": lambda loss: loss * 1e6,
}


@pytest.mark.parametrize("memory", ["full", "lean"])
@pytest.mark.parametrize("harm", HARMS)
def test_such_a_step_changes_nothing_and_is_counted(harm, memory, shop, tmp_path):
    outcome = shop.run(tmp_path / "run", "--memory", memory, prepare=inject(HARMS[harm], {10, 11, 50}))
    assert outcome.code == 0, outcome.err
    rows = read_history(tmp_path / "run" / "training_history.jsonl")
    skipped = [(row["phase"], row["step"]) for row in rows if row.get("skipped")]
    assert skipped == [(1, 10), (1, 11), (2, 10)] and rows[-1]["skipped_steps"] == 3
    assert outcome.out.count("| skipped: loss") == 3
    weights = load_model(tmp_path / "run" / "large_moe_final.pt").state_dict()
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize("is_lean", [False, True])
@pytest.mark.parametrize("harm", ["nan", "infinite"])
def test_weights_and_moments_are_bit_for_bit_as_before(harm, is_lean, small_training, monkeypatch):
    model, config, batches = small_training
    optimizers = prepare_training(model, config, None, is_lean)
    train_step(model, optimizers, batches[0], 0.01, config)

    def everything():
        moments = {
            f"{name} {key}": value.clone()
            for name, values in read_moments(model, optimizers).items()
            for key, value in values.items()
            if value.dtype != torch.int64  # whose turn it is, which goes by
        }
        return moments | {name: value.clone() for name, value in model.state_dict().items()}

    before = everything()
    inject(HARMS[harm], {0})()
    train_step(model, optimizers, batches[1], 0.01, config)
    assert [name for name, value in everything().items() if not torch.equal(value, before[name])] == []
    train_step(model, optimizers, batches[2], 0.01, config)
    after = everything()
    assert all(value.isfinite().all() for value in after.values())
    assert not torch.equal(after["embedding.weight"], before["embedding.weight"])


@pytest.fixture
def small_training(monkeypatch):
    from config import PRESETS, ModelConfig
    from test_growth_checks import lively_moe_model

    monkeypatch.setattr(step, "next_token_loss", step.next_token_loss)  # put back what a test injects
    monkeypatch.setattr(start, "duration_line", start.duration_line)
    model = lively_moe_model(ModelConfig(vocab_size=101, d_model=16, n_layers=2, n_heads=2, context_length=16))
    batches = [torch.randint(101, (4, 17), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    return model, PRESETS["tiny"], batches


def test_what_is_sound():
    for loss, norm, expected in (
        (3.0, 2.0, True), (float("nan"), 2.0, False), (3.0, float("nan"), False), (float("inf"), 2.0, False),
        (3.0, float("inf"), False), (3.0, EXPLODED * 0.5 + 1, False), (3.0, EXPLODED * 0.5, True),
    ):  # fmt: skip
        assert is_sound(torch.tensor(loss), torch.tensor(norm), 0.5).item() is expected


def test_too_many_in_a_row_stop_the_run_with_the_last_good_state(shop, tmp_path):
    bad = set(range(50, 200))
    outcome = shop.run(tmp_path / "run", prepare=inject(HARMS["nan"], bad))
    assert outcome.code == 2 and outcome.err.count("\n") == 1
    # Phase 2 begins with step 40 of the run, so its steps 10 to 19 are the first ten.
    assert f"phase 2, step {10 + MOST_IN_A_ROW - 1}: loss nan, gradient norm nan" in outcome.err
    assert "--resume --lr-phase2 0.01" in outcome.err
    assert resume(tmp_path / "run").code == 0
    weights = load_model(tmp_path / "run" / "large_moe_final.pt").state_dict()
    assert all(value.isfinite().all() for value in weights.values())


def test_without_the_guard_the_model_is_lost(shop, tmp_path):
    def unguarded():
        inject(HARMS["nan"], {10})()
        step.is_sound = lambda loss, grad_norm, clip: torch.tensor(True)
        step.take_if = lambda is_sound, optimizers: None

    outcome = shop.run(tmp_path / "run", prepare=unguarded)
    assert outcome.code == 2 and "loss nan" in outcome.err
    assert bad_steps.MOST_IN_A_ROW > 1
