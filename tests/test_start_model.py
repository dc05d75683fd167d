"""`--start-phase`: the model in the folder decides, an imported one too; what contradicts it is refused."""

import dataclasses

import pytest
import torch

import train_tinystories
from config import ModelConfig
from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.tokenizer_file import name_of_file
from models import load_model, save_model
from report.history import read_history
from test_growth_checks import lively_dense_model, lively_moe_model

PYTHIA = ModelConfig(
    vocab_size=4104, d_model=16, n_layers=2, n_heads=2, context_length=24, norm_eps=2e-5, rope_base=500.0,
    parallel_residual=True, rotary_share=0.5, tied=False,
)  # fmt: skip
STEPS = (
    "--device cpu --preset tiny --extra-layers 1 --batch-size 4 --steps-phase2 2 --steps-phase3 2 "
    "--eval-batches 1 --sample-tokens 4 --precision fp32"
).split()


@pytest.fixture
def imported(tmp_path, tokenizer_json):
    """A folder with a model of another family's choices, and its tokenizer, as `hugging_face.import_hf` leaves them."""
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    (folder / "new.json").write_bytes(tokenizer_json)
    name = name_of_file(folder / "new.json")
    (folder / "new.json").rename(folder / name)
    save_model(lively_dense_model(dataclasses.replace(PYTHIA, tokenizer=name)), folder / "dense_model.pt")
    return folder


@pytest.fixture(scope="module")
def stories(tmp_path_factory) -> list[str]:
    """Flags that name a few stories and where their tokens are kept."""
    folder = tmp_path_factory.mktemp("stories")
    text = END_OF_TEXT.join(f"Once upon a time there were {n} little birds. They sang a song." for n in range(400))
    (folder / "stories.txt").write_text(text, encoding="utf-8")
    return ["--data", str(folder / "stories.txt"), "--cache-dir", str(folder / "cache")]


def run(folder, stories, *flags) -> int:
    return train_tinystories.main([*STEPS, *stories, "--checkpoint-dir", str(folder), *map(str, flags)])


def refused(capsys) -> str:
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_phases_2_and_3_follow_from_an_imported_model(imported, stories, capsys):
    assert run(imported, stories, "--start-phase", 2) == 0
    out = capsys.readouterr().out
    assert "Geometry of" in out and "parallel residual, rotary 0.5, own output matrix" in out
    dense, moe, large = (
        load_model(imported / f"{n}.pt").config for n in ("dense_model", "moe_model_final", "large_moe_final")
    )
    assert moe == dense.upcycled(8, 2) and large == moe.grown(2.0, 1) and dense.tokenizer.startswith("tokenizer-")
    rows = read_history(imported / "training_history.jsonl")
    assert ModelConfig(**rows[0]["start_model"]) == dense and rows[0]["config"]["d_model"] == 16
    jumps = [row["jump"] for row in rows if row["event"] == "boundary"]
    assert len(jumps) == 2 and max(map(abs, jumps)) < 1e-5


def test_phase_3_follows_from_a_mixture_of_experts(tmp_path, stories):
    moe = lively_moe_model(dataclasses.replace(PYTHIA, vocab_size=4097, tokenizer="builtin"))
    save_model(moe, tmp_path / "moe_model_final.pt")
    assert run(tmp_path, stories, "--start-phase", 3) == 0
    assert load_model(tmp_path / "large_moe_final.pt").config == moe.config.grown(2.0, 1)


@pytest.mark.parametrize(
    "flags, text",
    [
        ("--d-model 32", "d_model 16, here 32"),
        ("--n-layers 3 --n-heads 4", "n_layers 2, here 3; n_heads 2, here 4"),
        ("--context-length 32", "context_length 24, here 32"),
        ("--tokenizer builtin", "tokenizer tokenizer-"),
    ],
)
def test_flags_that_contradict_the_model_are_refused(flags, text, imported, stories, capsys):
    before = sorted(imported.iterdir())
    for more in ((), ("--plan",)):
        assert run(imported, stories, "--start-phase", 2, *flags.split(), *more) == 2
        assert text in refused(capsys)
    assert [path for path in sorted(imported.iterdir()) if path.name != ".run.lock"] == before


def test_flags_that_agree_are_taken_and_the_plan_is_the_models(imported, stories, capsys):
    assert run(imported, stories, "--start-phase", 2, "--d-model", 16, "--context-length", 24, "--plan") == 0
    out = capsys.readouterr().out
    assert "16 × 2 × 2" in out and "Vocabulary 4,104" in out


def test_a_model_of_the_other_kind_is_refused(imported, stories, capsys):
    (imported / "dense_model.pt").rename(imported / "moe_model_final.pt")
    assert run(imported, stories, "--start-phase", 3) == 2
    assert "is dense, and phase 3 cannot begin with it" in refused(capsys)


def test_a_model_with_fewer_ids_than_the_tokenizer_is_refused(tmp_path, stories, capsys):
    save_model(lively_dense_model(dataclasses.replace(PYTHIA, vocab_size=4096)), tmp_path / "dense_model.pt")
    assert run(tmp_path, stories, "--start-phase", 2, "--tokenizer", "builtin") == 2
    assert "has 4,097 ids, but the model that the run begins with knows 4,096" in refused(capsys)


def test_a_tokenizer_that_is_missing_or_has_changed_is_one_line(imported, stories, capsys):
    path = next(imported.glob("tokenizer-*.json"))
    path.write_bytes(path.read_bytes() + b" ")
    assert run(imported, stories, "--start-phase", 2) == 2
    assert "has changed since it was written" in refused(capsys)
    path.unlink()
    assert run(imported, stories, "--start-phase", 2) == 2
    assert "cannot be read: No such file" in refused(capsys)


def test_a_tokenizer_file_serves_from_phase_1_on(tmp_path, stories, tokenizer_json):
    (tmp_path / "mine.json").write_bytes(tokenizer_json)
    folder = tmp_path / "run"
    small = "--d-model 16 --n-heads 2 --n-layers 1 --context-length 24 --steps-phase1 2".split()
    assert run(folder, stories, "--tokenizer", tmp_path / "mine.json", *small) == 0
    name = name_of_file(tmp_path / "mine.json")
    assert load_model(folder / "large_moe_final.pt").config.tokenizer == name and (folder / name).is_file()


@pytest.mark.parametrize("name", ["gpt9", "mine.txt", ""])
def test_other_tokenizers_are_refused(name, tmp_path, stories, capsys):
    assert run(tmp_path, stories, "--tokenizer", name) == 2
    assert f"tokenizer is {name!r}, must be auto, gpt2, builtin or the path of a tokenizer.json" in refused(capsys)


def test_the_file_gives_a_story_the_ids_of_the_encoding_it_was_made_from(tmp_path, tokenizer_json):
    (tmp_path / "t.json").write_bytes(tokenizer_json)
    ours, file = load_tokenizer("builtin"), load_tokenizer(str(tmp_path / "t.json"))
    text = "Once upon a time, \n\n Tim's  naïve 🦊 said: <|endoftext|>"
    assert file.encode_ordinary(text) == ours.encode_ordinary(text) and file.decode(ours.encode_ordinary(text)) == text
    assert file.n_vocab == 4097 and (file.end_of_text, file.eot_token) == (END_OF_TEXT, 4096)
    assert file.encode_ordinary("a\ud800") == ours.encode_ordinary("a?")
    assert torch.tensor(file.encode_ordinary("a" * 50)).max() < 4096
