"""Whole runs of the driver, as a user starts them: what they print, what they leave, how they refuse."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train_tinystories
from config import SETTINGS, TrainingConfig
from models import load_model
from phases import PHASES
from report.history import read_history
from run import boundary, loop, start
from training import machine, outlook

ROOT = Path(train_tinystories.__file__).parent
SMALL = (
    "--device cpu --preset tiny --data builtin --d-model 32 --n-heads 2 --n-layers 2 --extra-layers 1 --batch-size 4 "
    "--context-length 32 --steps-phase1 25 --steps-phase2 12 --steps-phase3 12 --log-every 5 --eval-every 10 "
    "--eval-batches 2 --sample-tokens 8 --lr-phase1 1e-2"
).split()


def run(folder, token_cache, *flags) -> int:
    return train_tinystories.main([*SMALL, "--checkpoint-dir", str(folder), "--cache-dir", token_cache, *flags])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, token_cache):
    """A finished run in a process of its own: its folder and what it printed."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    command = [sys.executable, "train_tinystories.py", *SMALL, "--checkpoint-dir", folder, "--cache-dir", token_cache]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder, result


def test_it_prints_what_the_quick_reference_shows(finished):
    _, result = finished
    out = result.stdout
    assert re.search(r"PHASE 1  —  Dense Model\n  Steps: 25  \|  LR: 0.01  \|  Device: cpu\n", out)
    assert re.search(r"Total Parameters: +0\.16 M\n  Active Params/tok: +0\.16 M  \(Dense model\)", out)
    assert re.search(
        r"Active Params/tok: +0\.\d\d M  \(top-2 of 8 experts\)\n  Inactive Params: +0\.\d\d M  \(12 experts idle\)",
        out,
    )
    assert re.search(r"Efficiency: \d\d\.\d% active per forward pass", out)
    assert re.search(r"^  step    0 \| loss 8\.\d{4} \| \d+\.\d+s \| [\d.]+[kMG]? tokens/s$", out, re.M)
    for name in ("ROPE", "ROUTER", "SYMMETRY", "FUNCTIONAL"):
        assert f"  {name:<20}: ✓ PASSED\n" in out
    assert "  ✓ ALL CHECKS PASSED\n  Model is ready for Phase 3 training.\n" in out
    box = out[out.index("BOUNDARY SUMMARY") :]
    for label in ("Phase 1 final loss      :", "Phase 2 first loss", "Phase 1→2 jump          :  0.0000  ✅ Small (normal)",
                  "Phase 2→3 jump          :  0.0000  ✅ TINY (success!)", "Phase 3 total drop"):  # fmt: skip
        assert label in box
    assert "\r" not in out and "step/s" not in result.stderr, "no progress bars where nobody watches"


def test_it_leaves_three_models_a_history_and_a_picture(finished):
    folder, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        *(phase.file for phase in PHASES),
        "training_history.jsonl",
        "training_curves.png",
        "report.html",
        ".run.lock",
    }
    widths = [load_model(folder / name).config.d_model for name in (phase.file for phase in PHASES)]
    assert widths == [32, 32, 64]
    assert load_model(folder / "large_moe_final.pt").config.n_layers == 3
    assert (folder / "training_curves.png").read_bytes().startswith(b"\x89PNG")
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert "Growth kept the function" in report and report.count("✓ passed") == 5


def test_its_history_says_what_happened(finished):
    folder, _ = finished
    rows = read_history(folder / "training_history.jsonl")
    assert rows[0]["event"] == "run" and rows[-1]["event"] == "summary"
    assert TrainingConfig(**rows[0]["config"]).d_model == 32
    steps = [(row["phase"], row["step"]) for row in rows if row["event"] == "step"]
    assert steps == [(1, i) for i in range(25)] + [(2, i) for i in range(12)] + [(3, i) for i in range(12)]
    boundaries = [row for row in rows if row["event"] == "boundary"]
    assert [(row["from_phase"], row["to_phase"]) for row in boundaries] == [(1, 2), (2, 3)]
    for row in boundaries:
        assert row["jump"] == row["loss_after"] - row["loss_before"] and abs(row["jump"]) <= 1e-5 and row["same_story"]
    evals = {
        phase: [row["loss"] for row in rows if row["event"] == "eval" and row["phase"] == phase] for phase in (1, 2, 3)
    }
    assert evals[1][-1] < evals[1][0] < 8.4 and evals[2][-1] < evals[1][-1] and evals[3][-1] < evals[2][-1]
    assert boundaries[0]["loss_before"] == evals[1][-1] and boundaries[1]["loss_before"] == evals[2][-1]
    assert [row["check"] for row in rows if row["event"] == "verification"] == [
        "functional",
        "rope",
        "router",
        "symmetry",
        "functional",
    ]
    shares = [row["expert_shares"] for row in rows if "expert_shares" in row]
    assert all(sum(layer) == pytest.approx(1, abs=1e-3) for step in shares for layer in step)
    assert rows[-1]["total_drop"] == boundaries[1]["loss_after"] - evals[3][-1]
    assert [row["story"][: len(row["prompt"])] for row in rows if row["event"] == "sample"] == ["Once upon a time"] * 3


def test_the_same_seed_gives_the_same_bits(finished, tmp_path, token_cache):
    folder, _ = finished
    assert run(tmp_path, token_cache) == 0
    for name in (phase.file for phase in PHASES):
        first, second = (load_model(each / name).state_dict() for each in (folder, tmp_path))
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_failed_check_stops_before_the_next_phase(tmp_path, token_cache, capsys):
    assert run(tmp_path, token_cache, "--noise-std", "0") == 3
    error = capsys.readouterr().err
    assert "growth checks failed before phase 3: symmetry" in error and "moe_model_final.pt is safe" in error
    assert (tmp_path / "moe_model_final.pt").exists() and not (tmp_path / "large_moe_final.pt").exists()
    failed = [
        row["check"]
        for row in read_history(tmp_path / "training_history.jsonl")
        if row["event"] == "verification" and not row["passed"]
    ]
    assert failed == ["symmetry"]


def test_ignoring_failed_checks_goes_on(tmp_path, token_cache, capsys):
    assert run(tmp_path, token_cache, "--noise-std", "0", "--ignore-failed-checks") == 0
    assert "going on although these failed: symmetry" in capsys.readouterr().out
    assert (tmp_path / "large_moe_final.pt").exists()


def test_a_jump_or_another_story_stops_the_run(tmp_path, token_cache, capsys, monkeypatch):
    """The boundary's own measurements stand beside the checks: here those see nothing."""

    def damaged(model, *arguments):
        moe = train_tinystories_upcycle(model, *arguments)
        with torch.no_grad():
            moe.final_norm.weight *= 1.5
        return moe

    train_tinystories_upcycle = train_tinystories.upcycle_to_moe
    monkeypatch.setattr(train_tinystories, "upcycle_to_moe", lambda *a, **_: damaged(*a))
    monkeypatch.setattr(boundary, "run_checks", lambda *_: [])
    stories = iter([[1], [2]])
    monkeypatch.setattr(boundary, "continuation", lambda run, model: next(stories))
    assert run(tmp_path, token_cache) == 3
    error = capsys.readouterr().err
    assert "before phase 2: jump (" in error and "story (" in error


def test_what_a_saved_state_takes_is_not_counted_twice(tmp_path, token_cache, monkeypatch):
    """A machine on which the run just fits has to be able to resume it."""
    whole_step, read = loop.train_step, start.read_run_state

    def stopped_step(*arguments):
        os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(*arguments)

    def loaded(*arguments, **named):
        monkeypatch.setattr(machine, "available_bytes", lambda device: 1e6)
        return read(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped_step)
        assert run(tmp_path, token_cache, "--steps-phase1", "2", "--steps-phase2", "1", "--steps-phase3", "1") == 143
    monkeypatch.setattr(start, "read_run_state", loaded)
    assert train_tinystories.main(["--resume", "--checkpoint-dir", str(tmp_path)]) == 0
    assert machine.available_bytes(torch.device("cpu")) == 1e6, "it was read"


def test_steps_of_zero_train_nothing_and_still_grow(tmp_path, token_cache):
    assert (
        run(
            tmp_path,
            token_cache,
            "--steps-phase1",
            "0",
            "--steps-phase2",
            "0",
            "--steps-phase3",
            "0",
            "--noise-std",
            "1",
        )
        == 0
    )
    assert load_model(tmp_path / "large_moe_final.pt").config.d_model == 64


BAD_INPUTS = [
    (["--preset", "huge"], "--preset huge: unknown; the presets are reference, tiny"),
    (["--steps-phse1", "3"], "unknown flag --steps-phse1; did you mean --steps-phase1?"),
    (["--batch-size", "many"], "invalid int value: 'many'"),
    (["--device", "tpu"], "invalid choice: 'tpu'"),
    (["--d-model", "30", "--n-heads", "4"], "d_model 30 is not divisible by n_heads 4"),
    (["--d-model", "36", "--n-heads", "4"], "is odd"),
    (["--top-k", "9"], "top_k is 9, must be between 1 and n_experts 8"),
    (["--scale-factor", "1.3"], "which is not a whole number; factors that work up to 2: 1.5, 2"),
    (["--scale-factor", "nan"], "scale_factor is nan"),
    (["--steps-phase2", "-1"], "steps_phase2 is -1, must be 0 or more"),
    (["--scale-factor", "1e12"], "d_model is 32000000000000"),
    (["--seed", "18446744073709551616"], "seed is 18446744073709551616, must be below 2**63"),
    (["--lr-phase1", "inf"], "lr_phase1 is inf"),
    (["--data", "no/such/file.txt"], "no/such/file.txt"),
    (["--data", "{empty}"], "empty"),
    (["--data", "{latin1}"], "UTF-8"),
    (["--data", "{short}"], "short.txt"),
    (["--checkpoint-dir", "{file}/below"], "is not writable"),
    (["--cache-dir", "{file}/below"], "--cache-dir"),
]


@pytest.mark.parametrize(
    "flags, text", BAD_INPUTS, ids=lambda value: " ".join(value) if isinstance(value, list) else ""
)
def test_bad_input_gets_one_line_and_exit_code_2(flags, text, tmp_path, token_cache, capsys):
    files = {"empty": b"", "latin1": "caf\xe9".encode("latin-1"), "short": b"A dog.<|endoftext|>A cat.", "file": b"x"}
    paths = {}
    for name, content in files.items():
        paths[name] = tmp_path / f"{name}.txt"
        paths[name].write_bytes(content)
    flags = [flag.format(**paths) for flag in flags]
    assert run(tmp_path / "out", token_cache, "--tokenizer", "builtin", *flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and text in error
    assert not list((tmp_path / "out").glob("*.jsonl"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there(tmp_path, token_cache, capsys):
    assert run(tmp_path, token_cache, "--device", "cuda") == 2
    assert "has no cuda; available: " in capsys.readouterr().err


def test_too_large_for_memory_is_found_before_training(tmp_path, token_cache, capsys):
    assert run(tmp_path, token_cache, "--d-model", "16384") == 2
    assert "will not fit" in capsys.readouterr().err and [p.name for p in tmp_path.iterdir()] == [".run.lock"]


def test_an_earlier_run_is_refused_and_survives_bad_input(finished, token_cache, capsys, tmp_path):
    folder, _ = finished
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(folder, token_cache) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert run(folder, token_cache, "--overwrite", "--data", "no/such/file.txt") == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_overwriting_replaces_an_earlier_run(tmp_path, token_cache):
    (tmp_path / "large_moe_final.pt").write_bytes(b"old")
    quick = ["--overwrite", "--steps-phase1", "1", "--steps-phase2", "1", "--steps-phase3", "1", "--sample-tokens", "0"]
    assert run(tmp_path, token_cache, *quick) == 0
    assert load_model(tmp_path / "large_moe_final.pt").config.d_model == 64


def test_a_loss_that_is_no_number_stops_with_advice(tmp_path, token_cache, capsys):
    assert run(tmp_path, token_cache, "--lr-phase1", "1e30", "--grad-clip", "1e30") == 2
    assert re.search(r"phase 1, step \d+: .*loss .*--resume --lr-phase1 5e\+29", capsys.readouterr().err)


def test_a_model_that_the_last_step_ruined_is_not_saved(tmp_path, token_cache, capsys):
    ruinous = "--steps-phase1 0 --steps-phase2 0 --steps-phase3 1 --lr-phase3 1e36 --grad-clip 1e30".split()
    assert run(tmp_path, token_cache, *ruinous) == 2
    assert "phase 3, step 0: held-out loss nan" in capsys.readouterr().err
    assert not (tmp_path / "large_moe_final.pt").exists()


def test_no_sample_tokens_claim_no_story(tmp_path, token_cache, capsys):
    none = "--steps-phase1 0 --steps-phase2 0 --steps-phase3 0 --sample-tokens 0".split()
    assert run(tmp_path, token_cache, *none) == 0
    assert "Story" not in capsys.readouterr().out
    rows = read_history(tmp_path / "training_history.jsonl")
    assert [row["same_story"] for row in rows if row["event"] == "boundary"] == [None, None]


def test_out_of_memory_names_the_ways_out(tmp_path, token_cache, capsys, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(train_tinystories, "train_phase", full)
    assert run(tmp_path, token_cache) == 4
    assert "--scale-factor 1.5 needs" in capsys.readouterr().err  # and not 2 extra layers, where the run has 1


def test_plan_trains_nothing(tmp_path, capsys):
    assert train_tinystories.main(["--plan", "--preset", "reference", "--checkpoint-dir", str(tmp_path / "none")]) == 0
    text = capsys.readouterr().out
    assert "2155.79 M" in text and not (tmp_path / "none").exists()
    assert len(text.splitlines()) <= 40 and max(map(len, text.splitlines())) <= 120, "fits on a screen"


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
def test_help_names_every_setting(flag, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        train_tinystories.main([flag])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for item in dataclasses.fields(TrainingConfig):
        assert "--" + item.name.replace("_", "-") in text.split()
        if flag == "--help-all":
            assert "".join(SETTINGS[item.name].help.split()) in "".join(text.split())
    if flag == "--help":
        lines = text.splitlines()
        assert len(lines) <= 40 and max(map(len, lines)) <= 120, "fits on a screen"


def test_a_line_says_which_preset_was_chosen_and_why(capsys):
    assert train_tinystories.main(["--plan", "--device", "cpu"]) == 0
    assert "Preset tiny, because the device is cpu; --preset reference chooses the other" in capsys.readouterr().out


@pytest.mark.parametrize(
    "code",
    [
        "from config import TrainingConfig; print(TrainingConfig())",
        "from transfer.simple_growth import scale_bilaterally; print('OK')",
    ],
)
def test_verification_commands_of_the_card(code):
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and ("steps_phase1=100" in result.stdout or result.stdout == "OK\n")


def test_growth_checks_script_prints_what_the_quick_start_shows():
    result = subprocess.run([sys.executable, "test_growth_checks.py"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    rule = "=" * 70
    for text in (
        f"{rule}\n  TEST 1: Dense → MoE Transition\n{rule}\n",
        "  ✓ PASSED — functional equivalence confirmed\n",
        f"{rule}\n  TEST 2: Bilateral Growth Verification\n{rule}\n",
        "  ✓ ALL CHECKS PASSED\n  Model is ready for Phase 3 training.\n",
        "✓ Dense → MoE transition test completed!\n✓ Bilateral growth test completed!\n",
    ):
        assert text in result.stdout


def test_history_rows_are_plain_json(finished):
    folder, _ = finished
    for line in (folder / "training_history.jsonl").read_text().splitlines():
        assert isinstance(json.loads(line)["event"], str)


def test_liveness_is_recorded_at_the_boundary_and_when_new_parameters_had_their_turn(finished):
    folder, result = finished
    rows = [row for row in read_history(folder / "training_history.jsonl") if row["event"] == "liveness"]
    assert [(row["phase"], row["steps"]) for row in rows] == [(2, 0), (2, 12), (3, 0), (3, 12)]
    assert rows[1]["never_touched_share"] < 0.2 and rows[3]["never_touched_share"] < 0.2
    kinds = {cosine["kind"]: cosine for cosine in rows[2]["clone_cosines"]}
    assert 0.4 < kinds["hidden units"]["average"] < 0.6, "1 / (1 + noise²)"
    assert "Liveness after 12 steps of phase 3" in result.stdout


def test_the_next_phase_goes_on_with_the_moments_that_its_model_was_grown_with(tmp_path, token_cache, monkeypatch):
    seen = []
    train_phase = train_tinystories.train_phase

    def watched(run, phase, model, moments):
        seen.append((phase.number, {name: {k: v.clone() for k, v in m.items()} for name, m in moments.items()}))
        result = train_phase(run, phase, model, moments)
        after = {name: {k: v.clone() for k, v in m.items()} for name, m in result.items()}
        seen.append((f"after {phase.number}", after))
        return result

    monkeypatch.setattr(train_tinystories, "train_phase", watched)
    assert run(tmp_path / "grown", token_cache) == 0
    states = dict(seen)
    before, after = states["after 1"], states[2]
    name = "blocks.0.mlp.up.weight"
    assert torch.equal(after[name]["momentum_buffer"][3], before[name]["momentum_buffer"] / 8)
    small, large = states["after 2"], states[3]
    assert torch.equal(large[name]["momentum_buffer"][:, :128, :32], small[name]["momentum_buffer"] / 2)
    seen.clear()
    assert run(tmp_path / "fresh", token_cache, "--grow-optimizer", "fresh") == 0
    assert dict(seen)[2] == {} and dict(seen)[3] == {}


@pytest.mark.parametrize("enough, size", [(1.5, "32 × 2 × 2"), (0.0, "64 × 3 × 4")])
def test_with_auto_all_phases_have_the_size_that_pays(enough, size, tmp_path, token_cache, capsys, monkeypatch):
    monkeypatch.setattr(outlook, "ENOUGH_TOKENS", enough)
    flags = "--grow-when auto --steps-phase1 8 --steps-phase2 4 --steps-phase3 9".split()
    assert run(tmp_path, token_cache, *flags, "--plan") == 0
    assert capsys.readouterr().out.count(f" {size} ") == 3
    assert run(tmp_path, token_cache, *flags) == 0
    said = " ".join(capsys.readouterr().out.split())
    first, *rows = read_history(tmp_path / "training_history.jsonl")
    assert first["outlook"] in said and "So nothing grows" in first["outlook"]
    assert {row["phase"] for row in rows if row["event"] == "step"} == {3}
    models = [load_model(tmp_path / phase.file).config for phase in PHASES]
    assert {f"{m.d_model} × {m.n_layers} × {m.n_heads}" for m in models} == {size}


def test_a_run_with_lean_memory_goes_through_both_boundaries(tmp_path, token_cache, finished, capsys):
    assert run(tmp_path, token_cache, "--memory", "lean") == 0
    assert "memory lean" in capsys.readouterr().out
    summaries = [read_history(folder / "training_history.jsonl")[-1] for folder in (tmp_path, finished[0])]
    for key in ("phase1_final", "phase2_final", "phase3_final"):
        assert summaries[0][key] == pytest.approx(summaries[1][key], abs=0.1)
    assert summaries[0]["phase3_final"] != summaries[1]["phase3_final"]
    lean, full = (
        [row for row in read_history(folder / "training_history.jsonl") if row["event"] == "liveness"]
        for folder in (tmp_path, finished[0])
    )
    assert [row["coverage_steps"] for row in lean] == [None, 12, None, 12]
    for i in (1, 3):
        assert lean[i]["never_touched_share"] == pytest.approx(full[i]["never_touched_share"], abs=0.02)
