"""`python -m hugging_face.export`: what transformers makes of the folder, its tokenizer, its card, and how it refuses."""

import dataclasses
import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from config import ModelConfig
from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT, TokenizerUnavailable, load_tokenizer
from data.tokenizer_file import TokenizerFile, as_tokenizer_json, name_of_file
from hugging_face import export, import_hf
from models import load_model, save_model
from models.generation import continuations
from report.history import History
from test_growth_checks import lively_dense_model, lively_moe_model
from tests.rounding import require_clear_choices, same_story
from transfer.simple_growth import scale_bilaterally

OURS = ModelConfig(vocab_size=4097, d_model=32, n_layers=2, n_heads=4, context_length=48, tokenizer="builtin")
MODELS = {
    "dense": lambda: lively_dense_model(OURS),
    # Its epsilon is another, and its gains are uneven.
    "dense, grown": lambda: scale_bilaterally(lively_dense_model(OURS), 1.5, 1),
    "dense, as Pythia": lambda: lively_dense_model(
        dataclasses.replace(OURS, parallel_residual=True, rotary_share=0.5, tied=False, rope_base=500.0)
    ),
    "experts": lambda: lively_moe_model(OURS),
    "experts, grown": lambda: scale_bilaterally(lively_moe_model(OURS), 1.5, 1),
    "experts, as Pythia": lambda: lively_moe_model(
        dataclasses.replace(OURS, parallel_residual=True, rotary_share=0.5, tied=False)
    ),
}
TOKENS = torch.randint(4097, (2, 48), generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4
FILES = {
    "config.json", "generation_config.json", "model.safetensors", "README.md", "tokenizer.json", "tokenizer_config.json",
}  # fmt: skip


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return builtin_split()[1]


def run(checkpoint, out, *flags) -> int:
    return export.main(["--checkpoint", str(checkpoint), "--out", str(out), *map(str, flags)])


def exported(kind: str, folder: Path) -> tuple:
    """One of `MODELS` and the folder that its export wrote."""
    model = MODELS[kind]()
    return model, exported_folder(model, folder)


def exported_folder(model, folder: Path) -> Path:
    path = folder / "model.pt"
    save_model(model, path)
    assert run(path, folder / "exported") == 0
    path.unlink()
    return folder / "exported"


def opened(transformers, folder: Path, kind: str):
    remote = {"trust_remote_code": True} if kind.startswith("experts") else {}
    return transformers.AutoModelForCausalLM.from_pretrained(folder, **remote).eval()


def drift(model, peer) -> float:
    require_clear_choices(model, TOKENS)
    with torch.no_grad():
        expected = model(TOKENS)
        assert expected.std() > 0.05
        return (peer(TOKENS).logits - expected).abs().max().item()


@pytest.mark.parametrize("kind", MODELS)
def test_transformers_computes_the_same_and_goes_on_with_the_same_story(kind, tmp_path, transformers):
    model, folder = exported(kind, tmp_path)
    peer = opened(transformers, folder, kind)
    assert drift(model, peer) <= TOLERANCE
    own_code = {export.MOE_CODE.name} if kind.startswith("experts") else set()
    assert {path.name for path in folder.iterdir()} == FILES | own_code
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=bool(own_code))
    ids = tokenizer("Once upon a time").input_ids
    generated = peer.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0].tolist()
    story = continuations(model, [ids], 16, tokenizer.eos_token_id)[0]
    assert generated[: len(ids)] == ids and same_story(model, ids, story, generated[len(ids) :])


def test_one_with_its_own_code_is_saved_and_opened_again(tmp_path, transformers):
    model, folder = exported("experts, as Pythia", tmp_path)
    opened(transformers, folder, "experts").save_pretrained(tmp_path / "again")
    assert drift(model, opened(transformers, tmp_path / "again", "experts")) <= TOLERANCE


# --- what the tolerance must catch


def harmed(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def left_out(weights):
    del weights["gpt_neox.layers.1.mlp.dense_4h_to_h.weight"]


def qkv_side_by_side(weights):
    for name in [name for name in weights if "query_key_value" in name]:
        weights[name] = weights[name].unflatten(0, (4, 3, 8)).transpose(0, 1).flatten(0, 2).contiguous()


def shifted_experts(weights):
    weights["gpt_neox.layers.0.mlp.router.weight"] = weights["gpt_neox.layers.0.mlp.router.weight"].roll(1, 0)


@pytest.mark.parametrize(
    "kind, harm",
    [
        ("dense", left_out),
        ("dense", qkv_side_by_side),
        ("experts", left_out),
        ("experts", qkv_side_by_side),
        ("experts", shifted_experts),
    ],
)
def test_wrong_weights_exceed_the_tolerance(kind, harm, tmp_path, transformers):
    model, folder = exported(kind, tmp_path)
    harmed(folder, harm)
    # A weight left out is whatever transformers found in memory, so the drift may be NaN: that is not within either.
    assert not drift(model, opened(transformers, folder, kind)) <= 10 * TOLERANCE


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("dense", {"rotary_pct": 0.5}),
        ("dense", {"use_parallel_residual": True}),
        ("dense", {"hidden_act": "relu"}),
        ("dense, grown", {"layer_norm_eps": 1e-3}),
        ("dense, as Pythia", {"rotary_emb_base": 10_000.0}),
        ("dense, as Pythia", {"tie_word_embeddings": True}),
        ("experts", {"num_experts_per_tok": 1}),
    ],
    ids=str,
)
def test_wrong_settings_exceed_the_tolerance(kind, changes, tmp_path, transformers):
    model, folder = exported(kind, tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    if changes.get("tie_word_embeddings"):
        harmed(folder, lambda weights: weights.pop("embed_out.weight"))
    assert drift(model, opened(transformers, folder, kind)) > TOLERANCE


# --- the tokenizer


def gpt2_or_skip():
    try:
        return load_tokenizer("gpt2")
    except TokenizerUnavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["builtin", "gpt2"])
def test_stories_have_the_same_ids_and_so_has_other_text(name, stories, tmp_path):
    encoding = load_tokenizer(name) if name == "builtin" else gpt2_or_skip()
    (tmp_path / "tokenizer.json").write_bytes(as_tokenizer_json(encoding, END_OF_TEXT))
    file = TokenizerFile(tmp_path / "tokenizer.json", END_OF_TEXT)
    texts = stories + [
        "", " ", "\n\n \t x", "naïve café", "日本語 \u3000\u00a0", "🦊🐻", "\u0000\x7f", "I'll  don't 'S 'LL", "0000 12,345",
        "aaaa" * 9, "!!!??...", f"a{END_OF_TEXT}b",
    ]  # fmt: skip
    expected = encoding.encode_ordinary_batch(texts)
    assert file.encode_ordinary_batch(texts) == expected
    assert [file.decode(ids) for ids in expected] == texts
    assert file.n_vocab == encoding.n_vocab and file.eot_token == encoding.eot_token
    ids = range(encoding.n_vocab)
    assert all(file.decode_single_token_bytes(i) == encoding.decode_single_token_bytes(i) for i in ids)


def test_merges_in_another_order_give_other_ids(stories, tmp_path):
    content = json.loads(as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT))
    content["model"]["merges"].reverse()
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    file = TokenizerFile(tmp_path / "tokenizer.json", END_OF_TEXT)
    valid = stories[:50]
    assert file.encode_ordinary_batch(valid) != load_tokenizer("builtin").encode_ordinary_batch(valid)


def test_the_tokenizer_of_transformers_gives_our_ids_the_special_token_included(stories, tmp_path, transformers):
    _, folder = exported("dense", tmp_path)
    tokenizer, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer("builtin")
    stories = stories[:200]
    assert tokenizer(stories).input_ids == ours.encode_ordinary_batch(stories)
    text = f"The end.{END_OF_TEXT}Once"
    ids = ours.encode(text, allowed_special={END_OF_TEXT})
    assert tokenizer(text).input_ids == ids and 4096 in ids and tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 4096 and tokenizer.model_max_length == 48


def test_a_model_that_does_not_name_its_tokenizer_needs_one(tmp_path, capsys):
    model = lively_dense_model(dataclasses.replace(OURS, tokenizer=""))
    save_model(model, tmp_path / "m.pt")
    (tmp_path / "no.json").write_text("{}")
    for flags, text in (
        ((), "the model file does not name its tokenizer; give --tokenizer"),
        (("--tokenizer", "gpt9"), "--tokenizer gpt9: unknown"),
        (("--tokenizer", tmp_path / "nowhere.json"), "cannot be read: No such file"),
        (("--tokenizer", tmp_path / "no.json"), "is no tokenizer.json"),
    ):
        assert run(tmp_path / "m.pt", tmp_path / "out", *flags) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1 and not (tmp_path / "out").exists()
    assert run(tmp_path / "m.pt", tmp_path / "out", "--tokenizer", "builtin") == 0


def test_a_tokenizer_that_is_not_the_models_is_refused(tmp_path, capsys):
    (tmp_path / "t.json").write_bytes(as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT))
    save_model(lively_dense_model(OURS), tmp_path / "m.pt")
    save_model(lively_dense_model(dataclasses.replace(OURS, vocab_size=99, tokenizer="")), tmp_path / "few.pt")
    for name, tokenizer, text in (
        ("m.pt", tmp_path / "t.json", "was trained on the ids of builtin"),
        ("few.pt", "builtin", "has 4,097 ids, but the model knows 99"),
    ):
        assert run(tmp_path / name, tmp_path / "out", "--tokenizer", tokenizer) == 2
        assert text in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- there and back


def test_what_was_exported_is_imported_as_it_was(tmp_path):
    for kind in ("dense", "dense, grown", "dense, as Pythia"):
        folder = tmp_path / kind
        folder.mkdir()
        model, source = exported(kind, folder)
        assert import_hf.main([str(source), "--out", str(folder / "back.pt")]) == 0
        back = load_model(folder / "back.pt")
        name = name_of_file(source / "tokenizer.json")
        assert back.config == dataclasses.replace(model.config, tokenizer=name)
        assert all(torch.equal(tensor, back.state_dict()[key]) for key, tensor in model.state_dict().items())
        # And exported once more: the tokenizer is found beside the model.
        assert run(folder / "back.pt", folder / "again") == 0
        assert (folder / "again" / "tokenizer.json").read_bytes() == (source / "tokenizer.json").read_bytes()


def test_a_mixture_of_experts_is_not_imported(tmp_path, capsys):
    _, source = exported("experts", tmp_path)
    assert import_hf.main([str(source), "--out", str(tmp_path / "back.pt")]) == 2
    assert "model_type is 'upcycled_moe', must be 'gpt_neox'" in capsys.readouterr().err


# --- the card


def test_the_card_shows_the_runs_figures_up_to_the_models_phase(tmp_path):
    (tmp_path / "training_curves.png").write_bytes(b"a picture")
    history = History(tmp_path / "training_history.jsonl")
    history.write("run", data={"source": "TinyStories"}, config={"seed": 7}, device="cpu", precision="fp32")
    for phase, loss in ((1, 3.5), (2, 3.25), (3, 3.125)):
        if phase > 1:
            history.write("boundary", from_phase=phase - 1, to_phase=phase, jump=phase * 1e-7)
        for factor in (2, 1):
            history.write("eval", phase=phase, tokens=1000 * phase, loss=factor * loss, bits_per_byte=1.5)
    history.close()
    cards = {}
    for name, model in (("dense_model.pt", lively_dense_model(OURS)), ("moe_model_final.pt", lively_moe_model(OURS))):
        save_model(model, tmp_path / name)
        assert run(tmp_path / name, tmp_path / name[:3]) == 0
        assert (tmp_path / name[:3] / "training_curves.png").read_bytes() == b"a picture"
        cards[name] = (tmp_path / name[:3] / "README.md").read_text(encoding="utf-8")
    dense, moe = cards.values()
    assert "| 1, dense | 1,000 | 3.5000 | 1.5000 |" in dense and "mixture" not in dense and "moved" not in dense
    assert "| 2, mixture of experts | 2,000 | 3.2500 | 1.5000 |" in moe and "3.1250" not in moe
    assert "Growth from phase 1 to 2 moved the loss by +2.0e-07." in moe and "TinyStories; seed 7, cpu, fp32." in moe
    assert "trust_remote_code=True" in moe and "trust_remote_code" not in dense and export.MOE_NOTE in moe
    assert "![Training and held-out loss" in dense and dense.startswith("---\nlibrary_name: transformers\n")


def test_without_a_history_the_card_says_so_and_a_damaged_one_is_refused(tmp_path, capsys):
    _, folder = exported("dense", tmp_path)
    assert "No training_history.jsonl was beside the model" in (folder / "README.md").read_text()
    save_model(lively_dense_model(OURS), tmp_path / "m.pt")
    (tmp_path / "training_history.jsonl").write_text('{"event": "run"}\n')
    assert run(tmp_path / "m.pt", tmp_path / "out") == 2
    assert "its checksum is wrong" in capsys.readouterr().err and not (tmp_path / "out").exists()


# --- whole or not at all


def test_no_folder_is_overwritten_and_nothing_is_left_of_a_failed_export(tmp_path, capsys, monkeypatch):
    save_model(lively_dense_model(OURS), tmp_path / "m.pt")
    (tmp_path / "empty").mkdir()
    assert run(tmp_path / "m.pt", tmp_path / "empty") == 2 and run(tmp_path / "m.pt", tmp_path / "m.pt") == 2
    assert run(tmp_path / "m.pt", tmp_path / "no" / "out") == 2 and run(tmp_path / "none.pt", tmp_path / "out") == 2
    for error, code in ((OSError(28, "No space left on device"), 2), (KeyboardInterrupt(), 130)):

        def failing(tensors, path, metadata):
            path.write_bytes(b"half")
            raise error

        monkeypatch.setattr(export, "save_file", failing)
        assert run(tmp_path / "m.pt", tmp_path / "out") == code
    lines = capsys.readouterr().err.strip().splitlines()
    texts = (
        "exists already",
        "is the model that --checkpoint names",
        "there is no folder",
        "no model file at",
        "No space left",
    )
    assert all(text in line for text, line in zip(texts, lines))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "m.pt"]


def test_a_folder_that_appears_meanwhile_stays_as_it_is(tmp_path, capsys, monkeypatch):
    save_model(lively_dense_model(OURS), tmp_path / "m.pt")
    sound = export.save_file

    def slow(tensors, path, metadata):
        (tmp_path / "out").mkdir()
        sound(tensors, path, metadata=metadata)

    monkeypatch.setattr(export, "save_file", slow)
    assert run(tmp_path / "m.pt", tmp_path / "out") == 2
    assert "it exists by now" in capsys.readouterr().err and list((tmp_path / "out").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "out"]


@pytest.mark.parametrize("command", [export, import_hf])
def test_the_example_of_help_is_one_that_the_command_takes(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--help"])
    assert stopped.value.code == 0
    name = command.__name__
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  python -m {name} ")]
    command.build_parser().parse_args(shlex.split(lines[0])[3:])


# --- lm-evaluation-harness, where it is installed (it is too large for requirements-dev.txt)


@pytest.mark.parametrize("kind", ["dense", "experts"])
def test_lm_evaluation_harness_runs_on_it(kind, stories, tmp_path, transformers):
    pytest.importorskip("lm_eval.models.huggingface", reason="pip install lm_eval[hf] to run this")
    _, folder = exported(kind, tmp_path)
    result = story_loss(folder, tmp_path, stories[:4])
    assert 0 < result["bits_per_byte,none"] < 20 and result["byte_perplexity,none"] > 1


def story_loss(folder: Path, place: Path, stories: list[str]) -> dict:
    """What the harness says of a model on stories: a local task, made of them."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    (place / "stories.jsonl").write_text("".join(json.dumps({"text": story}) + "\n" for story in stories))
    task = {
        "task": "stories", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(place / "stories.jsonl")}},
        "test_split": "test", "output_type": "loglikelihood_rolling", "doc_to_text": "", "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    }  # fmt: skip
    results = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "trust_remote_code": True, "dtype": "float32"},
        tasks=[task],
        task_manager=TaskManager(include_defaults=False),
        device="cpu",
        batch_size=1,
    )
    return results["results"]["stories"]
