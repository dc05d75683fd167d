"""`python -m transfer.grow`: what it writes, how it refuses, what it holds in memory."""

import dataclasses
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from config import ModelConfig, UserError
from durable_files import write_tensors
from models import Transformer, load_model, save_model
from models.files import put_tokenizer
from test_growth_checks import lively_dense_model, lively_moe_model
from transfer import grow
from transfer.verify_growth_mechanics import check_functional_identity

ROOT = Path(__file__).parent.parent
GEOMETRY = ModelConfig(vocab_size=97, d_model=16, n_layers=2, n_heads=4, context_length=16)


@pytest.fixture
def model(tmp_path) -> Path:
    path = tmp_path / "moe.pt"
    save_model(lively_moe_model(GEOMETRY), path)
    return path


def run(source, target, *flags) -> int:
    return grow.main(["--checkpoint", str(source), "--out", str(target), *map(str, flags)])


def test_it_writes_the_grown_model_and_says_what_it_did(model, tmp_path):
    out, before = tmp_path / "grown.pt", model.read_bytes()
    flags = ["--checkpoint", model, "--out", out, "--scale-factor", "1.5", "--extra-layers", "2"]
    result = subprocess.run([sys.executable, "-m", "transfer.grow", *flags], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    old, new = load_model(model), load_model(out)
    assert (new.config.d_model, new.config.n_layers, new.config.n_heads) == (24, 4, 6)
    assert check_functional_identity(old, new)
    lines = result.stdout.splitlines()
    counts = [sum(p.numel() for p in each.parameters()) for each in (old, new)]
    assert re.match(
        rf"old  width 16, 2 blocks, 4 heads, 8 experts, top 2: {counts[0]:,} parameters, [\d,]+ active", lines[0]
    )
    assert re.match(
        rf"new  width 24, 4 blocks, 6 heads, 8 experts, top 2: {counts[1]:,} parameters, [\d,]+ active", lines[1]
    )
    assert "  ✓ ALL CHECKS PASSED" in lines and lines[-1] == f"Wrote {out}"
    assert model.read_bytes() == before and sorted(tmp_path.iterdir()) == [out, model]


def test_a_tokenizer_that_cannot_be_copied_is_named(tmp_path):
    with pytest.raises(UserError, match="could not copy the tokenizer .*none.json to .*copy.json: No such file"):
        put_tokenizer(tmp_path / "none.json", tmp_path / "copy.json")
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_file_goes_with_the_model_that_names_it(model, tmp_path):
    source, name = tmp_path / "there" / "model.pt", "tokenizer-00000000.json"
    source.parent.mkdir()
    named = load_model(model)
    named.config = dataclasses.replace(named.config, tokenizer=name)
    save_model(named, source)
    source.with_name(name).write_text("{}")
    assert run(source, tmp_path / "grown.pt") == 0
    assert (tmp_path / name).read_text() == "{}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_it_keeps_the_dtype_and_grows_what_it_has_grown(dtype, tmp_path):
    paths = [tmp_path / f"{i}.pt" for i in range(3)]
    save_model(lively_dense_model(GEOMETRY).to(dtype), paths[0])
    assert run(paths[0], paths[1]) == 0 and run(paths[1], paths[2], "--scale-factor", 1.5, "--extra-layers", 0) == 0
    last = load_model(paths[2])
    assert last.embedding.weight.dtype == dtype and (last.config.d_model, last.config.n_layers) == (48, 6)


def test_the_same_seed_writes_the_same_weights(model, tmp_path):
    grown = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        assert run(model, tmp_path / name, "--seed", seed) == 0
        grown.append(load_model(tmp_path / name).state_dict())
    assert all(torch.equal(grown[0][name], grown[1][name]) for name in grown[0])
    assert not torch.equal(grown[0]["blocks.0.mlp.up.weight"], grown[2]["blocks.0.mlp.up.weight"])


@pytest.mark.parametrize(
    "flags, text",
    [
        ("--scale-factor 1.3", "factors that work up to 2: 1.25, 1.5, 1.75, 2"),
        ("--scale-factor 0.5", "scale_factor is 0.5"),
        ("--scale-factor nan", "scale_factor is nan"),
        ("--scale-factor inf", "scale_factor is inf"),
        ("--scale-factor 1e6", "d_model is"),
        ("--scale-factor two", "invalid float value: 'two'"),
        ("--extra-layers -1", "extra_layers is -1"),
        ("--extra-layers 1.5", "invalid int value: '1.5'"),
        ("--noise-std nan", "noise_std is nan"),
        ("--noise-std -1", "noise_std is -1.0"),
        ("--seed -1", "seed is -1"),
        ("--check-tolerance nan", "check_tolerance is nan"),
        ("--check-tolerance 0", "check_tolerance is 0.0"),
        ("--scale-facter 2", "unknown flag --scale-facter; did you mean --scale-factor?"),
    ],
)
def test_impossible_values_are_refused_in_one_line(model, tmp_path, capsys, flags, text):
    assert run(model, tmp_path / "out.pt", *flags.split()) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == [model]


def test_both_files_have_to_be_named(capsys):
    assert grow.main([]) == 2
    assert capsys.readouterr().err == "error: the following arguments are required: --checkpoint, --out\n"


def test_what_is_no_model_is_refused_in_one_line(model, tmp_path, capsys):
    (tmp_path / "text.pt").write_text("no model")
    (tmp_path / "cut.pt").write_bytes(model.read_bytes()[:5000])
    write_tensors({"weights": 1}, tmp_path / "other.pt")
    save_model(lively_dense_model(GEOMETRY).half(), tmp_path / "half.pt")
    for name, text in (
        ("nowhere.pt", "no model file at"),
        (".", "no model file at"),
        ("text.pt", "damaged or no model of ours"),
        ("cut.pt", "damaged or no model of ours"),
        ("other.pt", "not a model of ours"),
        ("half.pt", "the weights are float16"),
    ):
        assert run(tmp_path / name, tmp_path / "out.pt") == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
        assert not (tmp_path / "out.pt").exists()


def test_where_nothing_can_be_written_is_found_out_before_growing(model, tmp_path, capsys, monkeypatch):
    def never(*_arguments):
        raise AssertionError("it has begun to grow")

    monkeypatch.setattr(grow, "load_model", never)
    (tmp_path / "kept.pt").write_text("precious")
    (tmp_path / "dangling.pt").symlink_to(tmp_path / "gone.pt")
    (tmp_path / "same.pt").hardlink_to(model)
    before = sorted(tmp_path.iterdir())
    cases = [
        (model, "is the model that --checkpoint names"),
        (tmp_path / "same.pt", "is the model that --checkpoint names"),
        (tmp_path / "kept.pt", "exists already, and no model is overwritten"),
        (tmp_path / "dangling.pt", "exists already, and no model is overwritten"),
        (tmp_path, "exists already, and no model is overwritten"),
        (tmp_path / "missing" / "out.pt", f"there is no folder {tmp_path / 'missing'}; make it first"),
        (model / "out.pt", f"there is no folder {model}; make it first"),
        (tmp_path / ("x" * 250), "cannot be written: File name too long"),
    ]
    if Path("/proc").is_dir():
        # The one folder in which not even root can make a file.
        cases.append((Path("/proc/out.pt"), "cannot be written"))
    for out, text in cases:
        assert run(model, out) == 2
        error = capsys.readouterr().err
        assert text in error and error.startswith(f"error: --out {out}") and error.count("\n") == 1
    assert sorted(tmp_path.iterdir()) == before and (tmp_path / "kept.pt").read_text() == "precious"


def test_broken_growth_writes_nothing(model, tmp_path, capsys, monkeypatch):
    sound = grow.scale_bilaterally

    @torch.no_grad()
    def broken(*arguments) -> Transformer:
        new = sound(*arguments)
        new.final_norm.weight *= 2
        return new

    monkeypatch.setattr(grow, "scale_bilaterally", broken)
    assert run(model, tmp_path / "out.pt") == 3
    error = capsys.readouterr().err
    assert error.startswith("error: growth checks failed: functional (Layer-wise drift") and error.count("\n") == 1
    assert error.endswith(f"{tmp_path / 'out.pt'} was not written\n")
    assert list(tmp_path.iterdir()) == [model]


def test_growth_without_noise_writes_nothing(model, tmp_path, capsys):
    assert run(model, tmp_path / "out.pt", "--noise-std", 0) == 3
    assert "failed: symmetry (Gradients are identical" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [model]


def test_a_file_that_appears_meanwhile_is_not_overwritten(model, tmp_path, capsys, monkeypatch):
    out, sound = tmp_path / "out.pt", grow.scale_bilaterally

    def slow(*arguments) -> Transformer:
        out.write_text("precious")
        return sound(*arguments)

    monkeypatch.setattr(grow, "scale_bilaterally", slow)
    assert run(model, out) == 2
    assert "exists already" in capsys.readouterr().err and out.read_text() == "precious"


def test_too_little_memory_and_ctrl_c_are_one_line(model, tmp_path, capsys, monkeypatch):
    for error, code, text in (
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), 4, "out of memory"),
        (KeyboardInterrupt(), 130, "stopped"),
    ):

        def failing(*_arguments):
            raise error

        monkeypatch.setattr(grow, "scale_bilaterally", failing)
        assert run(model, tmp_path / "out.pt") == code
        assert text in capsys.readouterr().err and list(tmp_path.iterdir()) == [model]


def test_memory_holds_the_two_models_and_no_third(tmp_path):
    """All that torch allocates, from reading to writing: beyond the two models less than half of the smaller."""
    source, target = tmp_path / "old.pt", tmp_path / "new.pt"
    geometry = ModelConfig(vocab_size=97, d_model=64, n_layers=12, n_heads=4, context_length=4)
    save_model(lively_moe_model(geometry), source)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        assert run(source, target, "--scale-factor", 1.5, "--extra-layers", 0) == 0
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live, peak = 0, 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    old, new = (sum(p.nbytes for p in load_model(path).parameters()) for path in (source, target))
    assert old + new < peak < old + new + old / 2


def test_help_has_an_example_that_works_and_so_have_the_documents(capsys):
    with pytest.raises(SystemExit) as stopped:
        grow.main(["--help"])
    assert stopped.value.code == 0
    texts = [capsys.readouterr().out]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    commands = [line for text in texts for line in re.findall(r"^\s*python -m transfer\.grow (--.*)$", text, re.M)]
    assert len(commands) >= 2
    for command in commands:
        grow.parse(shlex.split(command, comments=True))
