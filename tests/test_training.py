"""The parts of training: schedule, optimizer, history, evaluation."""

import math

import pytest
import torch

from config import ModelConfig
from models import next_token_loss
from report.history import History, read_history
from test_growth_checks import lively_dense_model, lively_moe_model
from training.heldout import bits_per_byte, heldout_loss
from training.optimizer import build_optimizers
from training.schedule import learning_rate

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, context_length=16)


def test_schedule_rises_holds_and_falls_to_its_end():
    rates = [learning_rate(step, 100, 0.0, 1.0, 0.1, 10) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11) and rates[10] == rates[39] == 1.0 and rates[-1] == pytest.approx(0.1)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11])) and all(a > b for a, b in zip(rates[39:], rates[40:]))
    for n in (1, 2, 3):
        assert all(0 <= learning_rate(step, n, 0.0, 1.0, 0.0, 10) <= 1 for step in range(n))


def test_the_rate_is_continuous_through_a_boundary():
    last = learning_rate(99, 100, 0.0, 0.04, 0.004, 10)
    first = learning_rate(0, 100, 0.004, 0.03, 0.003, 10)
    assert last == pytest.approx(0.004) and last < first < last + 0.003


def test_optimizers_partition_the_parameters_and_decay_matrices_alone():
    model = lively_moe_model(SMALL)
    muon, adamw = build_optimizers(model, 0.1, tokens=32)
    names = {parameter: name for name, parameter in model.named_parameters()}
    fused, matrices, stacks, outputs, inputs, routers, rest = (
        [names[p] for p in group["params"]] for group in muon.param_groups + adamw.param_groups
    )
    assert sorted(fused + matrices + stacks + outputs + inputs + routers + rest) == sorted(names.values())
    assert {name.split(".")[-2] for name in fused} == {"qkv"} and outputs == ["embedding.weight"] and inputs == []
    assert {name.split(".")[-2] for name in matrices} == {"out"}
    assert {name.split(".")[-2] for name in stacks} == {"up", "down"}
    assert all("router" in name for name in routers) and len(routers) == SMALL.n_layers
    assert all(name.endswith("bias") or "norm" in name for name in rest)
    assert [group["weight_decay"] for group in muon.param_groups + adamw.param_groups] == [0.1] * 3 + [0.0] * 4


def test_history_keeps_every_row_and_a_torn_last_line_is_left_out(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.write("step", loss=1.5)
    history.write("eval", loss=1.25)
    history.close()
    with open(history.path, "a") as file:
        file.write('{"event": "step", "lo')
    assert [(row["event"], row["loss"]) for row in read_history(history.path)] == [("step", 1.5), ("eval", 1.25)]


def test_history_stays_json_where_a_figure_is_not_finite(tmp_path):
    history = History(tmp_path / "h.jsonl")
    history.write("verification", largest_drift=float("inf"), loss=float("nan"), passed=False)
    row = read_history(history.path)[0]
    assert row["largest_drift"] is None and row["loss"] is None and row["passed"] is False


def test_heldout_loss_is_exact_whatever_the_training_precision():
    model = lively_dense_model(SMALL)
    batches = [torch.randint(101, (2, 17), generator=torch.Generator().manual_seed(i)) for i in range(3)]
    expected = sum(next_token_loss(model, batch)[0].item() for batch in batches) / 3
    model.compute_dtype = torch.bfloat16
    assert heldout_loss(model, batches) == expected
    assert bits_per_byte(math.log(2) * 8, 4.0) == 2.0
