"""The benchmarks at toy size: they run, write valid JSON, and notice a contender that computes something else."""

import dataclasses
import json
import time
import warnings
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers")

from benchmarks import (
    gpu,
    machines,
    measuring,
    memory,
    moe_layer,
    moe_peers,
    optimizer_cost,
    reference_growth,
    step_time,
)
from benchmarks.measuring import time_interleaved
from benchmarks.moe_peers import Contender, hugging_face, make_problem, ours, require_agreement
from config import PRESETS, ModelConfig
from models import count_parameters, next_token_loss
from training.flops import network_flops, optimizer_flops, step_flops
from training.self_check import check_model

CPU = torch.device("cpu")
TOY = dataclasses.replace(
    PRESETS["tiny"], batch_size=2, context_length=16, d_model=16, n_layers=1, n_heads=2, extra_layers=1
)

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def short_samples(monkeypatch):
    """Nothing here looks at a time: one call is a sample, and a small product the limit."""
    monkeypatch.setattr(measuring, "SAMPLE_SECONDS", 0.0)
    monkeypatch.setitem(PRESETS, "tiny", TOY)


def figures_of(main, path, flags: str) -> dict:
    """What a benchmark writes at this command line."""
    assert main([*flags.split(), "--json", str(path)]) == 0
    figures = json.loads(path.read_text())
    assert figures["machine"]["torch"] == torch.__version__ and figures["machine"]["threads"] >= 1
    return figures


def problem(dtype=torch.float32):
    return make_problem(16, moe_layer.routings(64)["random"], moe_layer.N_EXPERTS, dtype, CPU)


def test_every_round_times_all_contenders_and_starts_with_another():
    calls = []
    contenders = {name: lambda name=name: calls.append(name) for name in "abc"}
    timings = time_interleaved(contenders, CPU, rounds=4)
    assert "".join(calls) == "aabbcc" + "abc" + "bca" + "cab" + "abc"
    assert [len(timing.samples) for timing in timings.values()] == [4, 4, 4]


def test_a_timing_is_its_median_and_its_range():
    timing = measuring.Timing((3.0, 1.0, 2.0, 2.0, 9.0))
    assert timing.seconds == 2.0 and timing.spread == 4.0


def test_the_limit_is_the_fastest_product_and_is_timed_with_the_contenders():
    limit = measuring.find_limit(torch.float32, CPU, [(4, 4, 4), (256, 256, 256)])
    assert limit.flops == 2 * 256**3 and limit.call().shape == (256, 256)
    assert measuring.Limit(8.0, limit.call, best=8.0).rate(measuring.Timing((2.0, 1.0, 4.0))) == 4.0


def test_moe_layer_runs_every_routing_and_reports_shares_of_the_faster_dense_peer(tmp_path):
    rows = figures_of(moe_layer.main, tmp_path / "f.json", "--widths 16 --tokens 64")["rows"]
    assert len(rows) == 2 * 5
    for row in rows:
        fastest = min(row["dense, 2x rows ms"], row["dense, 2x hidden ms"])
        assert row["ours / dense"] == pytest.approx(fastest / row["ours ms"])
        assert row["ours error"] <= moe_peers.TOLERANCE[measuring.DTYPES[row["dtype"]]]


def test_routings_are_what_their_names_say():
    for name, expert_Nk in moe_layer.routings(4096).items():
        assert all(len(set(experts)) == 2 for experts in expert_Nk.tolist()), name
        share = expert_Nk.flatten().bincount(minlength=8) / expert_Nk.numel()
        largest, smallest, n_used = share.max().item(), share.min().item(), int((share > 0).sum())
        assert n_used == {"one expert empty": 7, "collapsed": 2}.get(name, 8)
        if name == "balanced":
            assert largest == smallest == 0.125
        if name == "random":
            assert 0.11 < smallest <= largest < 0.14
        if name == "Zipf":
            assert largest > 5 * smallest


@pytest.mark.parametrize("index, what", list(enumerate(("output", *moe_peers.GRADIENTS))))
def test_a_contender_that_computes_something_else_is_caught(index, what):
    """Negative control: one part in a hundred, in one place."""
    layer = problem()
    expected = hugging_face(layer, "eager")()
    right = ours(layer)

    class Wrong(Contender):
        def __call__(self):
            results = super().__call__()
            results[index] = results[index] * 1.01
            return results

    wrong = Wrong(right.forward, right.leaves, right.d_output)
    require_agreement({"right": right}, expected, torch.float32)
    with pytest.raises(AssertionError, match=f"wrong: {what} differ"):
        require_agreement({"wrong": wrong}, expected, torch.float32)


def test_a_gradient_that_is_not_a_number_is_caught():
    layer = problem()
    expected = hugging_face(layer, "eager")()
    expected[1][0, 0] = float("nan")
    with pytest.raises(AssertionError, match="inputs differ by nan"):
        require_agreement({"ours": ours(layer)}, expected, torch.float32)


@pytest.mark.parametrize("how", ["--dtype bf16", "--dtype fp32", "--memory lean"])
def test_step_time_runs_all_phases_and_compares_their_rates(how, tmp_path):
    figures = figures_of(step_time.main, tmp_path / "f.json", f"--preset tiny --phases 1,2,3 {how}")
    steps = {row["step"]: row for row in figures["steps"]}
    assert list(steps) == ["dense", "MoE", "large MoE"]
    for row, parts in zip(figures["steps"], figures["parts"]):
        assert row["first s"] > 0 and row["seconds"] > 0
        assert set(parts) == {"step", "forward", "loss head", "backward", "optimizer"}
        assert min(value for part, value in parts.items() if part != "step") > 0
    equal = steps["MoE"]["with Muon"] / steps["dense"]["with Muon"]
    assert figures["ratios"]["FLOP rate of MoE over dense, with Muon"] == pytest.approx(equal)
    assert steps["MoE"]["of limit"] < steps["MoE"]["with Muon"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_the_optimizer_costs_is_counted_as_the_formula_has_it(dtype, tmp_path):
    """At reference geometry: a row for each phase, within the target in fp32."""
    figures = figures_of(optimizer_cost.main, tmp_path / "f.json", f"--dtype {dtype}")
    geometries = PRESETS["reference"].phase_geometries(50_257)
    assert [row["phase"] for row in figures["phases"]] == [1, 2, 3]
    for row, geometry in zip(figures["phases"], geometries, strict=True):
        assert row["network_flops"] == network_flops(geometry, 8)
        assert row["optimizer_flops"] == pytest.approx(optimizer_flops(geometry, 8, measuring.DTYPES[dtype]))
        assert row["optimizer_flops"] <= {"fp32": 0.6, "bf16": 0.66}[dtype] * row["network_flops"]


@pytest.mark.parametrize("n_experts", [0, 4])
def test_the_networks_formula_is_what_torch_counts(n_experts):
    """Forward and backward of a small model; routing sends every token to two experts, whichever they are.

    Attention is counted apart: torch has a formula for its whole matrix, and runs one that skips half.
    """
    config = ModelConfig(97, 32, 2, 2, context_length=16, n_experts=n_experts)
    model = check_model(config)
    tokens = torch.randint(97, (3, 17), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        next_token_loss(model, tokens)[0].backward()
    products = sum(
        flops for operator, flops in counter.get_flop_counts()["Global"].items() if "attention" not in str(operator)
    )
    used = sum(
        config.top_k * weight[0].numel() if weight.ndim == 3 else weight.numel()
        for name, weight in model.named_parameters()
        if weight.ndim > 1 and name.endswith("weight")
    )
    # The formula counts biases and norms as if they were multiplied.
    vectors, attention = count_parameters(config).active - used, 2 * 16 * 32
    assert products == 6 * 3 * 16 * used == network_flops(config, 3) - 6 * 3 * 16 * (vectors + attention)


def test_network_flops_leave_out_the_optimizer():
    config = ModelConfig(97, 32, 2, 2, context_length=16)
    tokens, active = 3 * 16, 97 * 32 + 2 * (12 * 32 * 32 + 13 * 32) + 2 * 32
    attention = 6 * 2 * 16 * 32
    assert network_flops(config, 3) == pytest.approx(tokens * (6 * active + attention))
    assert step_flops(config, 3) > network_flops(config, 3)


@pytest.mark.parametrize("how", ["full", "lean"])
def test_memory_compares_the_plan_with_each_phase(how, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "in_fresh_process", lambda function, *arguments: function(*arguments))
    flags = f"--preset tiny --device cpu --memory {how} --steps 2"
    figures = figures_of(memory.main, tmp_path / "f.json", flags)
    assert [row["phase"] for row in figures["phases"]] == ["1 Dense", "2 MoE", "3 Large MoE"]
    for row in figures["phases"]:
        assert row["ratio"] == pytest.approx(row["planned GB"] / row["measured GB"])
        assert len(row["losses"].split()) == 2


def allocate(n_bytes: int) -> int:
    before = measuring.peak_bytes(CPU)
    torch.ones(n_bytes, dtype=torch.uint8)
    return measuring.peak_bytes(CPU) - before


def test_a_fresh_process_measures_its_own_peak():
    """Not that of the process which started it, which is larger."""
    torch.ones(300_000_000, dtype=torch.uint8)
    grown = measuring.in_fresh_process(allocate, 100_000_000)
    assert 90_000_000 < grown < 150_000_000


def test_reference_growth_measures_each_stage(tmp_path, monkeypatch):
    monkeypatch.setattr(reference_growth, "TrainingConfig", lambda: TOY)
    monkeypatch.setitem(measuring.VOCAB_SIZE, "reference", 97)
    figures = figures_of(reference_growth.main, tmp_path / "f.json", "")
    assert figures["all checks passed"] and figures["grow"]["peak_gb"] > 0 and abs(figures["jump"]) < 1e-5


def test_gpu_runs_every_path_on_a_cpu(tmp_path, monkeypatch):
    # Compiling takes minutes on a CPU; what is called is the same.
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    figures = figures_of(gpu.main, tmp_path / "f.json", "--device cpu --small")
    assert figures["problems"] == {}
    assert [(row["phase"], row["batch"]) for row in figures["phases"]] == [(p, b) for p in (1, 2, 3) for b in (1, 1, 2)]
    assert all(
        row["syncs"] is None and row["MFU"] is None and row["of fastest product"] > 0 for row in figures["phases"]
    )
    (card,) = figures["card"]
    assert card["checks passed"] == "5/5" and abs(card["jump 2-3"]) < 1e-5 and card["seconds"] > card["phase 3 s"]
    assert [row["tokens"] for row in figures["moe"]] == list(gpu.SMALL.tokens)
    assert all(row["ours / HF"] > 0 and row["HF compiled ms"] > 0 for row in figures["moe"])


def a_bench(seconds: float) -> gpu.Bench:
    return gpu.Bench(gpu.SMALL, CPU, [(8, 8, 8)], 1e9, data="no/such/file", ends=time.monotonic() + seconds)


def test_a_section_that_fails_or_has_no_time_left_is_reported_and_keeps_its_rows(monkeypatch):
    def breaks(bench):
        yield {"a": 1}
        raise RuntimeError("the card\ntook fire")

    monkeypatch.setattr(gpu, "moe", breaks)
    rows, reports = [], []
    assert gpu.run_section("moe", a_bench(60), rows, lambda: reports.append(len(rows))) == "failed: the card took fire"
    assert rows == [{"a": 1}] and reports == [1]
    assert gpu.run_section("phases", a_bench(0), rows, lambda: None) == "stopped: the time was up"
    problem = gpu.run_section("card", a_bench(60), [], lambda: None)
    assert problem.startswith("failed: the reference run ended with exit code 2")


def test_only_warnings_of_synchronisation_count():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("called a synchronizing CUDA operation (Triggered internally at ...)")
        warnings.warn("something else")
    (place,) = gpu.places_of(caught)
    assert place.startswith("test_benchmarks.py:")


@pytest.mark.parametrize(
    "main, flags, text",
    [
        (moe_layer.main, "--widht 3", "unknown flag --widht; did you mean --widths?"),
        (moe_layer.main, "--dtypes fp8", "'fp8' is no dtype; choose among bf16, fp32"),
        (moe_layer.main, "--tokens 0", "argument --tokens"),
        (step_time.main, "--phases 4", "there are phases 1, 2 and 3"),
        (step_time.main, "--preset huge", "invalid choice"),
        (memory.main, "--phases 1,5", "there are phases 1, 2 and 3"),
        (memory.main, "--steps 0", "argument --steps"),
        (gpu.main, "--device cpu --sections card,nope", "unknown section 'nope'"),
        (moe_layer.main, "--json no/such/folder/f.json", "cannot write no/such/folder/f.json"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(main, flags, text, capsys):
    assert main(flags.split()) == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1


def test_the_first_page_shows_what_the_plan_says_of_the_machines_that_people_have(capsys):
    assert machines.main([]) == 0
    assert capsys.readouterr().out.strip() in (ROOT / "README.md").read_text(encoding="utf-8")
    refused, runs = (machines.machine_row(machines.Device("A machine", "cuda", usable, 80)) for usable in (5.0, 80.0))
    assert "is refused" in refused[2] and "` fits" in refused[2] and "runs, full memory" in runs[2]


def test_a_time_is_what_is_multiplied_and_what_is_moved():
    """An M2 stays within the 20 minutes that are the target; twice the rate and bandwidth take half the time."""
    (m2,) = (processor for processor in machines.PROCESSORS if processor.name == "M2")
    seconds = machines.seconds_of_phases(m2)
    twice = machines.seconds_of_phases(m2._replace(rate=2 * m2.rate, bandwidth=2 * m2.bandwidth))
    assert twice == pytest.approx([s / 2 for s in seconds]) and sum(seconds) <= 20 * 60
    flops = 100 * sum(step_flops(model, 8) for model in PRESETS["reference"].phase_geometries(50_257))
    products = sum(machines.seconds_of_phases(m2._replace(bandwidth=1e99)))
    assert products == pytest.approx(flops / 2.2e12)
