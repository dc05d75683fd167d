"""`python -m hugging_face.import_hf`: GPT-NeoX models of Hugging Face's format, their damage, and what cannot be read."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from config import ModelConfig, UserError
from data.tokenizer import tokenizer_name
from hugging_face import import_hf
from hugging_face.gpt_neox import DEFAULTS, from_neox_config, neox_config, neox_name
from models import Transformer, build_dense_model, count_parameters, load_model
from test_growth_checks import lively_dense_model
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe
from transfer.verify_growth_mechanics import detailed_growth_check

GEOMETRY = ModelConfig(
    vocab_size=4104, d_model=32, n_layers=2, n_heads=4, context_length=24, parallel_residual=True, rotary_share=0.25,
    tied=False,
)  # fmt: skip
TOKENS = torch.randint(4097, (2, 24), generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4


@pytest.fixture
def source(tmp_path, tokenizer_json):
    """A folder as the hub has it, in the older style of released models: `rotary_pct`, fp16, masks beside weights."""
    folder = tmp_path / "source"
    folder.mkdir()
    model = lively_dense_model(GEOMETRY)
    weights = {neox_name(name): tensor.half() for name, tensor in model.state_dict().items()}
    for block in range(GEOMETRY.n_layers):
        weights[f"gpt_neox.layers.{block}.attention.bias"] = torch.ones(1, 1, 24, 24, dtype=torch.bool)
        weights[f"gpt_neox.layers.{block}.attention.masked_bias"] = torch.tensor(-1e9)
        weights[f"gpt_neox.layers.{block}.attention.rotary_emb.inv_freq"] = torch.ones(1)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(neox_config(GEOMETRY)))
    (folder / "tokenizer.json").write_bytes(tokenizer_json)
    return folder


def run(source, out, *flags) -> int:
    return import_hf.main([str(source), "--out", str(out), *map(str, flags)])


def change_config(folder, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_weights(folder, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def drift(model: Transformer, logits: torch.Tensor) -> float:
    with torch.no_grad():
        return (model(TOKENS) - logits).abs().max().item()


# --- what is read


def test_an_imported_model_computes_what_transformers_computes(source, tmp_path, transformers, capsys):
    assert run(source, tmp_path / "dense_model.pt") == 0
    model = load_model(tmp_path / "dense_model.pt")
    peer = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = peer(TOKENS).logits
    assert expected.std() > 0.05 and drift(model, expected) <= TOLERANCE
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    name = tokenizer_name(str(source / "tokenizer.json"))
    assert model.config.tokenizer == name and (tmp_path / name).read_bytes() == (source / "tokenizer.json").read_bytes()
    assert "parallel residual, rotary 0.25, own output matrix" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["dense_model.pt", name, "source"])


def swapped_qkv(weights):
    for name in [name for name in weights if "query_key_value" in name]:
        q, k, v = weights[name].unflatten(0, (4, 3, 8)).unbind(1)
        weights[name] = torch.stack((k, q, v), 1).flatten(0, 2)


def qkv_side_by_side(weights):
    """The layout of other families: all queries, all keys, all values."""
    for name in [name for name in weights if "query_key_value" in name]:
        weights[name] = weights[name].unflatten(0, (4, 3, 8)).transpose(0, 1).flatten(0, 2).contiguous()


def zeroed(name):
    def change(weights):
        weights[name] = torch.zeros_like(weights[name])

    return change


@pytest.mark.parametrize(
    "harm",
    [swapped_qkv, qkv_side_by_side, zeroed("gpt_neox.layers.1.mlp.dense_4h_to_h.bias"), zeroed("embed_out.weight")],
)
def test_a_wrong_weight_exceeds_the_tolerance(harm, source, transformers):
    peer = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    change_weights(source, harm)
    with torch.no_grad():
        assert drift(import_hf.read_model(source), peer(TOKENS).logits) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "changes",
    [
        {"rotary_pct": 1.0},
        {"rotary_pct": 0.5},
        {"use_parallel_residual": False},
        {"rotary_emb_base": 3},
        {"layer_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_a_wrong_setting_exceeds_the_tolerance(changes, source, transformers):
    # With half of each head turned there is more than one frequency, and the base matters.
    change_config(source, rotary_pct=0.75)
    peer = transformers.AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = peer(TOKENS).logits
    assert drift(import_hf.read_model(source), expected) <= TOLERANCE
    change_config(source, **changes)
    assert drift(import_hf.read_model(source), expected) > TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_transformers_saves_today_is_read_with_settings_in_a_dict(dtype, tmp_path, transformers, tokenizer_json):
    torch.manual_seed(0)
    peer = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=4104, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=24, rotary_pct=0.75, rotary_emb_base=500, use_parallel_residual=True,
            initializer_range=0.1,
        )
    ).to(dtype).eval()  # fmt: skip
    peer.save_pretrained(tmp_path / "saved", max_shard_size="100KB")
    (tmp_path / "saved" / "tokenizer.json").write_bytes(tokenizer_json)
    assert (tmp_path / "saved" / "model.safetensors.index.json").is_file()
    model = import_hf.read_model(tmp_path / "saved")
    with torch.no_grad():
        assert drift(model, peer.float()(TOKENS).logits) <= TOLERANCE


@pytest.mark.parametrize("is_sharded", [False, True])
def test_pickled_weights_are_read_and_no_code_in_them(is_sharded, source, tmp_path, capsys):
    expected = import_hf.read_model(source).state_dict()
    weights = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    if is_sharded:
        names = {name: f"pytorch_model-{number % 2}.bin" for number, name in enumerate(weights)}
        for file in set(names.values()):
            torch.save({name: weights[name] for name in names if names[name] == file}, source / file)
        (source / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": names}))
    else:
        torch.save(weights, source / "pytorch_model.bin")
    found = import_hf.read_model(source).state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())

    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"x": Malicious()}, source / ("pytorch_model-1.bin" if is_sharded else "pytorch_model.bin"))
    assert run(source, tmp_path / "out.pt") == 2
    assert "holds other things than tensors" in capsys.readouterr().err and not (tmp_path / "ran").exists()


def test_a_shorter_context_changes_the_limit_alone(source, tmp_path):
    assert run(source, tmp_path / "short.pt", "--context-length", 8) == 0
    short, whole = load_model(tmp_path / "short.pt"), import_hf.read_model(source)
    assert short.config.context_length == 8 and torch.equal(short(TOKENS[:, :8]), whole(TOKENS[:, :8]))


def test_an_imported_model_is_upcycled_and_grown(source):
    dense = import_hf.read_model(source)
    moe = upcycle_to_moe(dense)
    with torch.no_grad():
        before = dense(TOKENS)
        assert drift(moe, before) <= 1e-5
        for factor, extra in ((1.5, 1), (2, 2)):
            grown = scale_bilaterally(moe, factor, extra)
            assert drift(grown, before) <= 1e-5 and all(detailed_growth_check(moe, grown).values())


# As released; vocabulary and geometry are those that the test below grows.
PYTHIA_160M = {
    "architectures": ["GPTNeoXForCausalLM"], "bos_token_id": 0, "eos_token_id": 0, "hidden_act": "gelu",
    "hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-05,
    "max_position_embeddings": 2048, "model_type": "gpt_neox", "num_attention_heads": 12, "num_hidden_layers": 12,
    "rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16",
    "transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304,
}  # fmt: skip


def test_the_settings_of_pythia_160m_make_its_geometry():
    config = from_neox_config(PYTHIA_160M)
    assert config == ModelConfig(
        50_304, 768, 12, 12, context_length=2048, parallel_residual=True, rotary_share=0.25, tied=False
    )
    assert count_parameters(config).total == 162_322_944  # as its card says


@pytest.mark.slow
def test_at_pythias_real_width_and_vocabulary_growth_is_exact():
    """Random weights, and two blocks in place of twelve, so that it stays within seconds."""
    dense = build_dense_model(dataclasses.replace(from_neox_config(PYTHIA_160M), n_layers=2, context_length=16))
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(50_304, (1, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for parameter in dense.parameters():
            if parameter.dim() == 1:  # gains and biases; the matrices are random already
                parameter.add_(torch.empty_like(parameter).normal_(0.0, 0.05, generator=generator))
        before = dense(tokens)
        moe = upcycle_to_moe(dense, n_experts=2, top_k=1)
        grown = scale_bilaterally(moe, 1.5, 1)
        assert before.std() > 0.3
        for model in (moe, grown):
            assert (model(tokens) - before).abs().max() <= 1e-5
        grown.unembedding.weight *= 1.001
        assert (grown(tokens) - before).abs().max() > 1e-4


# --- what is refused


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', must be 'gpt_neox', 'llama'"),
        ({"hidden_act": "gelu_fast"}, "hidden_act is 'gelu_fast', must be 'gelu'"),
        ({"attention_bias": False}, "attention_bias is False"),
        ({"intermediate_size": 100}, "intermediate_size is 100, must be 4 hidden_size, 128"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "the rope_type of RoPE is 'linear'"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "the rope_type of RoPE is 'yarn'"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is"),
        ({"hidden_size": "32"}, "hidden_size is '32', must be a whole number"),
        ({"hidden_size": 30, "intermediate_size": 120}, "d_model 30 is not divisible by n_heads 4"),
        ({"rotary_pct": 0.1}, "rotary_share 0.1 of head_dim 8"),
        ({"rotary_pct": None}, "rotary_pct is None, must be a number above 0"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is true, but the weights have an output matrix"),
        ({"hidden_size": 64, "intermediate_size": 256}, "by config.json it has to be"),
        ({"num_hidden_layers": 3}, "the weights lack gpt_neox.layers.2."),
        ({"num_hidden_layers": 1}, "is none of a GPT-NeoX's"),
        ({"vocab_size": 4096}, "has to be (4096, 32)"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_by_the_name_of_its_field(changes, text, source, tmp_path, capsys):
    change_config(source, **changes)
    assert run(source, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_left_out_settings_are_those_of_transformers(transformers):
    """A config.json need not say what is the default there."""
    theirs = transformers.GPTNeoXConfig()
    for name, value in DEFAULTS.items():
        if name.startswith("rotary"):
            key = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}[name]
            assert theirs.rope_parameters[key] == value
        else:
            # Today a rope_scaling that was left out is the default RoPE, spelled out.
            assert getattr(theirs, name, None) == (theirs.rope_parameters if name == "rope_scaling" else value)


def shards_beside_the_whole(folder) -> None:
    """Others than the file has: nobody can know which are meant."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(weights, "model-1.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    "harm, text",
    [
        (lambda f: (f / "config.json").unlink(), "config.json cannot be read: No such file"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (lambda f: (f / "config.json").write_text("[1]"), "config.json is no JSON object"),
        (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.json"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "is no tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "holds no weights"),
        (lambda f: (f / "model.safetensors").write_bytes(b"no weights"), "is damaged or no safetensors file"),
        (lambda f: (f / "model.safetensors.index.json").write_text("{}"), "does not say which tensor is in which file"),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x"}}'),
            "does not say which tensor",
        ),
        (
            lambda f: (f / "model.safetensors.index.json").write_text('{"weight_map": {"a": "x.safetensors"}}'),
            "x.safetensors is missing",
        ),
        (shards_beside_the_whole, "holds weights twice, model.safetensors and what model.safetensors.index.json names"),
        (lambda f: (f / "config.json").write_text("[" * 100_000), "config.json is no JSON"),
    ],
)
def test_missing_and_damaged_files_are_one_line(harm, text, source, tmp_path, capsys):
    harm(source)
    assert run(source, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_tensors_that_are_left_out_or_unknown_are_named(source):
    change_weights(source, lambda weights: weights.pop("gpt_neox.layers.1.attention.dense.bias"))
    with pytest.raises(UserError, match="lack gpt_neox.layers.1.attention.dense.bias"):
        import_hf.read_model(source)
    change_weights(source, lambda weights: weights.update(colour=torch.zeros(1)))
    with pytest.raises(UserError, match="the tensor colour is none of a GPT-NeoX's"):
        import_hf.read_model(source)


@pytest.mark.parametrize("name", ["nobody/nothing", "a/b/c", "./nowhere", "/nowhere"])
def test_a_name_without_a_hub_is_one_line(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(import_hf, "reachable", lambda url, seconds: False)
    assert run(name, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert f"{name} is no folder" in error and error.count("\n") == 1


def test_a_name_is_downloaded_and_read(source, tmp_path, monkeypatch):
    import huggingface_hub

    asked = []
    monkeypatch.setattr(import_hf, "reachable", lambda url, seconds: True)
    monkeypatch.setattr(
        huggingface_hub, "snapshot_download", lambda name, **more: asked.append((name, more)) or str(source)
    )
    assert run("some/model", tmp_path / "out.pt") == 0
    (name, more), *others = asked
    assert name == "some/model" and not others
    assert {"*.safetensors", *import_hf.SAY_THE_ENDS} <= set(more["allow_patterns"])
    assert not any(pattern.endswith(".py") for pattern in more["allow_patterns"])


def test_no_model_is_overwritten(source, tmp_path, capsys):
    (tmp_path / "kept.pt").write_text("precious")
    assert run(source, tmp_path / "kept.pt") == 2
    assert "exists already" in capsys.readouterr().err and (tmp_path / "kept.pt").read_text() == "precious"
    assert run(source, tmp_path / "out.pt", "--context-length", 25) == 2
    assert "--context-length is 25, must be between 1 and max_position_embeddings, 24" in capsys.readouterr().err


def test_every_parameter_has_a_name_of_its_own_there_and_settings_map_there_and_back():
    for config in (GEOMETRY, GEOMETRY.upcycled(4, 2)):
        with torch.device("meta"):
            names = [name for name, _ in Transformer(config).named_parameters()]
        assert len({neox_name(name) for name in names}) == len(names)
    assert from_neox_config(neox_config(GEOMETRY)) == GEOMETRY
