"""`python evaluate.py`: its loss is training's, its counts are the routers', its figures are written down."""

import dataclasses
import json
import math
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import evaluate
from config import PRESETS, ModelConfig
from data import load_data, mean_bytes_per_token
from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.whole_text import read_whole_text
from inference import expert_words
from inference.expert_words import TokensOfExperts, word_of
from inference.text_loss import measure_loss, windows
from models import save_model
from test_growth_checks import lively_dense_model, lively_moe_model
from training.heldout import bits_per_byte, heldout_loss
from training.self_check import check_model

ROOT = Path(__file__).parent.parent
SMALL = ModelConfig(vocab_size=4097, d_model=32, n_layers=2, n_heads=4, context_length=16, tokenizer="builtin")
STORIES = [f"Tom saw {n} cats. “Meow,” said the {n}. cat, and it was happy." for n in range(40)]


@pytest.fixture(scope="module")
def encoding():
    return load_tokenizer("builtin")


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("evaluate")
    models = {"dense": lively_dense_model(SMALL), "moe": lively_moe_model(SMALL)}
    models["nan"] = lively_dense_model(SMALL)
    with torch.no_grad():
        models["nan"].final_norm.weight[0] = float("nan")
    for name, model in models.items():
        save_model(model, folder / f"{name}.pt")
    (folder / "stories.txt").write_text(f"\n{END_OF_TEXT}\n".join(STORIES), encoding="utf-8")
    (folder / "empty.txt").touch()
    (folder / "blank.txt").write_text(" \n")
    (folder / "latin1.txt").write_bytes("café".encode("latin-1"))
    paths = {path.name.replace(".txt", "_txt").removesuffix(".pt"): path for path in folder.iterdir()}
    return paths | {"folder": folder}


def text_of(n_tokens: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 500, n_tokens).astype(np.uint16)


# ---- loss


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("n_tokens", [2, 16, 17, 18, 33, 16 * 7 + 1, 16 * 7 + 9])
def test_every_token_but_the_first_is_predicted_once(n_tokens, batch_size):
    predicted, counted = [], np.arange(n_tokens).astype(np.uint16)
    for batch in windows(counted, 16, batch_size):
        assert batch.dtype == torch.int64 and len(batch) <= batch_size and 2 <= batch.shape[1] <= 17
        assert (batch.diff(dim=1) == 1).all()
        predicted += batch[:, 1:].flatten().tolist()
    assert predicted == list(range(1, n_tokens))


@pytest.mark.parametrize("build", [lively_dense_model, lively_moe_model])
def test_the_loss_is_that_of_training_on_the_same_windows(build):
    model, tokens = build(SMALL), text_of(16 * 12 + 1)
    expected = heldout_loss(model, list(windows(tokens, 16, 4)))
    measured = measure_loss(model, tokens, 4)
    assert measured.loss == pytest.approx(expected, rel=1e-6) and measured.n_predicted == 16 * 12
    assert measured.seconds > 0
    with torch.no_grad():
        model.final_norm.weight *= 1.01
    assert measure_loss(model, tokens, 4).loss != pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_over_tokens_also_where_the_last_window_is_short():
    model, tokens = lively_dense_model(SMALL).double(), text_of(16 * 3 + 5)
    losses = []
    with torch.no_grad():
        for start in range(0, len(tokens), 16):
            part = torch.from_numpy(tokens[start : start + 17].astype(np.int64))[None]
            logits = model(part[:, :-1])
            losses += F.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none").tolist()
    assert len(losses) == len(tokens) - 1
    for batch_size in (1, 2, 100):
        assert measure_loss(model, tokens, batch_size).loss == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    # Negative control: a mean of windows would weigh the short one's tokens more.
    of_windows = [sum(losses[i : i + 16]) / len(losses[i : i + 16]) for i in range(0, len(losses), 16)]
    assert abs(sum(of_windows) / len(of_windows) - sum(losses) / len(losses)) > 1e-6


def test_tokens_are_those_that_training_holds_out(files, encoding, tmp_path):
    settings = {"tokenizer": "builtin", "cache_dir": str(tmp_path), "batch_size": 2, "context_length": 16}
    config = dataclasses.replace(PRESETS["tiny"], eval_batches=2, **settings)
    path = str(files["stories_txt"])
    data = load_data(dataclasses.replace(config, data="builtin"), say=lambda line: None)
    text = read_whole_text("builtin", encoding)
    assert np.array_equal(text.tokens, data.valid) and text.n_stories == data.summary["valid"]["n_stories"]
    assert mean_bytes_per_token(text.tokens, encoding, encoding.eot_token) == data.bytes_per_token
    data = load_data(dataclasses.replace(config, data=path, valid_data=path), say=lambda line: None)
    assert np.array_equal(read_whole_text(path, encoding).tokens, data.valid)


def test_a_beginning_of_a_text_is_said_to_be_one(files, encoding):
    path = str(files["stories_txt"])
    whole = read_whole_text(path, encoding)
    n = len(whole.tokens)
    assert whole.is_whole and whole.n_stories == 40
    for limit in (n, n + 1):
        assert read_whole_text(path, encoding, limit).is_whole
    for limit in (2, 50, n - 1):
        part = read_whole_text(path, encoding, limit)
        assert not part.is_whole and np.array_equal(part.tokens, whole.tokens[:limit]) and 1 <= part.n_stories <= 40


# ---- experts


def test_counts_are_the_routers_choices(encoding):
    """In a layer whose input is the token alone, every token's experts follow from its embedding."""
    model, tokens = lively_moe_model(SMALL), text_of(16 * 40 + 1)
    block = model.blocks[0]
    with torch.no_grad():
        block.attention.out.weight.zero_()
        block.attention.out.bias.zero_()
        logits_VE = block.mlp.router(block.mlp_norm(model.embedding.weight))
    taken = TokensOfExperts(model)
    with taken.counting(model):
        measure_loss(model, tokens, 4)
    inputs = torch.from_numpy(tokens[:-1].astype(np.int64))
    assert torch.equal(taken.met_V, inputs.bincount(minlength=4097))
    expected_EV = torch.zeros(8, 4097, dtype=torch.int64)
    for token, experts in enumerate(logits_VE.topk(2).indices):
        expected_EV[experts, token] = taken.met_V[token]
    assert torch.equal(taken.taken_LEV[0], expected_EV)
    assert not torch.equal(taken.taken_LEV[1], expected_EV), "the other layer sees more than the token"
    assert (taken.taken_LEV.sum(1) == 2 * taken.met_V).all()
    before = taken.met_V.clone()
    measure_loss(model, tokens, 4)
    assert torch.equal(taken.met_V, before), "outside of `counting` nothing is counted"


def test_shares_are_those_of_the_layers_own_routing(encoding):
    model, tokens = lively_moe_model(SMALL), text_of(17)
    taken = TokensOfExperts(model)
    batch = torch.from_numpy(tokens.astype(np.int64))[None, :-1]
    with torch.no_grad(), taken.counting(model):
        _, routings = model.hidden(batch)
    for layer, routing in zip(taken.experts(encoding), routings):
        share_E = routing.slots_per_expert_E / routing.slots_per_expert_E.sum()
        assert [expert.share for expert in layer] == pytest.approx(share_E.tolist())


def test_words_have_the_highest_lift_among_those_that_are_met_often(encoding, monkeypatch):
    monkeypatch.setattr(expert_words, "MIN_COUNT", 10)
    taken = TokensOfExperts(check_model(dataclasses.replace(SMALL, n_layers=1, n_experts=2, top_k=1)))
    ids = {"always": 300, "mostly": 301, "never": 302, "rare": 303}
    for name, (met, by_first) in {"always": (10, 10), "mostly": (40, 30), "never": (41, 0), "rare": (9, 9)}.items():
        taken.met_V[ids[name]] = met
        taken.taken_LEV[0, :, ids[name]] = torch.tensor([by_first, met - by_first])
    first, second = taken.experts(encoding)[0]
    base = 49 / 100
    assert (first.share, second.share) == (base, 1 - base)
    assert [(w.lift, w.taken, w.met) for w in first.words] == [(1 / base, 10, 10), (0.75 / base, 30, 40)]
    assert [w.text for w in second.words] == [word_of(ids[name], encoding) for name in ("never", "mostly")]
    monkeypatch.setattr(expert_words, "MIN_COUNT", 9)
    assert [w.met for w in taken.experts(encoding)[0][0].words] == [10, 9, 40]


def test_words_are_shown_as_they_can_be_read(encoding):
    shown = {text: word_of(encoding.encode_single_token(text), encoding) for text in (" the", "ing", "\n", ".", " ")}
    assert shown == {" the": "the", "ing": "+ing", "\n": "+\\n", ".": "+.", " ": "+␣"}
    assert word_of(encoding.eot_token, encoding) == END_OF_TEXT
    assert "\x1b" not in word_of(encoding.encode_single_token(b"\x1b"), encoding)


def test_the_table_stays_narrow():
    experts = [expert_words.Expert(0.125, [expert_words.Word("x" * n, 4.0, 9, 9) for n in (30, 30, 30, 2)])] * 2
    lines = expert_words.table([experts] * 3).split("\n")
    assert len(lines) == 9 and max(map(len, lines)) <= expert_words.WIDTH and lines[1].count("×") == 2


# ---- the command


def measure(files, capsys, flags: str, code: int = 0) -> str:
    assert evaluate.main(["--device", "cpu", *shlex.split(flags.format(**files))]) == code
    return capsys.readouterr().out


def test_a_text_is_measured_and_written_down(files, capsys, tmp_path, encoding):
    path = tmp_path / "figures.json"
    out = measure(files, capsys, f"--checkpoint {{moe}} --data {{stories_txt}} --json {path}")
    figures = json.loads(path.read_text(encoding="utf-8"))
    text = read_whole_text(str(files["stories_txt"]), encoding)
    assert f"all of its {len(text.tokens):,} tokens, 40 stories" in out
    loss = measure_loss(lively_moe_model(SMALL), text.tokens, 8).loss
    assert figures["loss"] == pytest.approx(loss, rel=1e-6) and figures["perplexity"] == math.exp(figures["loss"])
    n_bytes = sum(len(story.encode()) for story in STORIES)
    assert figures["bits_per_byte"] == pytest.approx(bits_per_byte(figures["loss"], n_bytes / len(text.tokens)))
    assert figures["tokens_predicted"] == len(text.tokens) - 1 and figures["tokens_per_second"] > 0
    for name, digits in (("loss", "{:.4f}"), ("perplexity", "{:,.2f}"), ("bits_per_byte", "{:.3f}")):
        assert re.search(rf"\s{re.escape(digits.format(figures[name]))}\b", out), name
    for layer in figures["experts"]:
        assert len(layer) == 8 and sum(expert["share"] for expert in layer) == pytest.approx(1)
        words = [word for expert in layer for word in expert["words"]]
        assert words and min(word["met"] for word in words) >= expert_words.MIN_COUNT
    assert out.count("expert ") >= 16 and max(map(len, out.splitlines()[3:])) <= 100
    assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]


def test_a_dense_model_has_no_experts(files, capsys):
    out = measure(files, capsys, "--checkpoint {dense} --data {stories_txt} --max-tokens 100")
    assert "the first 100 tokens" in out and "over 99 tokens" in out and "xperts" not in out


def test_bf16_is_another_loss_and_not_by_much(files, capsys, tmp_path):
    losses = []
    for precision in ("fp32", "bf16"):
        measure(
            files,
            capsys,
            f"--checkpoint {{dense}} --data {{stories_txt}} --precision {precision} --json {tmp_path / precision}",
        )
        figures = json.loads((tmp_path / precision).read_text())
        losses.append(figures["loss"])
        assert figures["precision"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    assert 0 < abs(losses[0] - losses[1]) < 0.05


BAD = [
    ("", "the following arguments are required: --data"),
    ("--checkpoint {folder}/none.pt --data builtin", "no model file at"),
    ("--checkpoint {dense} --data no/such.txt", "'no/such.txt', which is neither builtin nor tinystories nor"),
    ("--checkpoint {dense} --data ''", "which is neither builtin nor tinystories"),
    ("--checkpoint {dense} --data {folder}", "which is a folder"),
    ("--checkpoint {dense} --data {empty_txt}", "is empty"),
    ("--checkpoint {dense} --data {blank_txt}", "holds no stories"),
    ("--checkpoint {dense} --data {latin1_txt}", "is not UTF-8 text"),
    ("--checkpoint {nan} --data {stories_txt}", "its weights are damaged, or training ran away"),
    ("--checkpoint {dense} --data builtin --max-tokens 1", "--max-tokens is 1, must be at least 2"),
    ("--checkpoint {dense} --data builtin --batch-size 0", "--batch-size is 0"),
    ("--checkpoint {dense} --data builtin --precision fp8", "invalid choice: 'fp8'"),
    ("--checkpoint {dense} --data builtin --json {folder}/none/f.json", "there is no folder"),
    ("--checkpoint {dense} --data builtin --json {folder}", "it is a folder"),
    ("--checkpoint {dense} --data builtin --dat a", "unknown flag --dat; did you mean --data?"),
]


@pytest.mark.parametrize("flags, text", BAD, ids=[text[:40] for _, text in BAD])
def test_bad_input_gets_one_line_and_exit_code_2(flags, text, files, capsys):
    assert evaluate.main(shlex.split(flags.format(**files))) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1


def test_ctrl_c_and_too_little_memory_are_one_line(files, capsys, monkeypatch):
    for error, code, text in ((KeyboardInterrupt(), 130, "stopped"), (MemoryError(), 4, "a smaller --batch-size")):

        def failing(*_):
            raise error

        monkeypatch.setattr(evaluate, "measure_loss", failing)
        assert evaluate.main(shlex.split("--checkpoint {dense} --data {stories_txt}".format(**files))) == code
        assert text in capsys.readouterr().err


def test_help_and_documents_have_examples_that_work(capsys):
    with pytest.raises(SystemExit) as stopped:
        evaluate.main(["--help"])
    assert stopped.value.code == 0
    texts = [capsys.readouterr().out]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    commands = [line for text in texts for line in re.findall(r"^\s*python evaluate\.py (--.*)$", text, re.M)]
    assert len(commands) >= 3
    for command in commands:
        evaluate.parse(shlex.split(command.split("  ")[0], comments=True))
