"""Llama, Mistral and Mixtral of Hugging Face's format: read, written and opened by `transformers`' own classes."""

import dataclasses
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_export import FILES, exported_folder
from test_import_hf import change_config, change_weights, run
from test_tokenizer_file import llama as sentencepiece_tokenizer

from config import ModelConfig, UserError
from data.tokenizer import load_tokenizer
from hugging_face import export, import_hf
from hugging_face.llama import DEFAULTS, OTHER_DEFAULTS, from_llama_config, llama_config, llama_weights
from models import count_parameters, load_model
from models.generation import continuations
from report.history import History
from test_growth_checks import lively_dense_model, lively_moe_model
from transfer.simple_growth import scale_bilaterally

GEOMETRY = ModelConfig(
    vocab_size=4097, d_model=32, n_layers=2, n_heads=8, context_length=48, architecture="llama", queries_per_kv=2,
    hidden_ratio=2.75, norm_eps=1e-3, tokenizer="builtin",
)  # fmt: skip
SCALED = dataclasses.replace(GEOMETRY, tied=False, rope_scaling=(8.0, 1.0, 4.0, 16), rope_base=500.0)
MODELS = {
    "dense": lambda: lively_dense_model(GEOMETRY),
    "dense, scaled, grown": lambda: scale_bilaterally(lively_dense_model(SCALED), 1.5, 1),
    "experts": lambda: lively_moe_model(GEOMETRY),
    "experts, scaled": lambda: lively_moe_model(SCALED),
    "experts, grown": lambda: scale_bilaterally(lively_moe_model(GEOMETRY), 1.5, 1),
}
TOKENS = torch.randint(4097, (2, 48), generator=torch.Generator().manual_seed(0))
TOLERANCE = 1e-4


@torch.no_grad()
def drift(model, peer, tokens=TOKENS) -> float:
    expected = peer(tokens).logits
    assert expected.std() > 0.05
    return (model(tokens) - expected).abs().max().item()


# --- out


@pytest.mark.parametrize("kind", MODELS)
def test_stock_classes_compute_the_same_and_go_on_with_the_same_story(kind, tmp_path, transformers):
    model = MODELS[kind]()
    folder = exported_folder(model, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(peer) is (transformers.MixtralForCausalLM if "experts" in kind else transformers.LlamaForCausalLM)
    assert {path.name for path in folder.iterdir()} == FILES and "auto_map" not in (folder / "config.json").read_text()
    assert drift(model, peer) <= TOLERANCE
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("Once upon a time").input_ids
    generated = peer.generate(torch.tensor([ids]), max_new_tokens=16, do_sample=False)[0].tolist()
    assert generated[len(ids) :] == continuations(model, [ids], 16, tokenizer.eos_token_id)[0]
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "trust_remote_code" not in card and "custom_code" not in card
    assert ("| architecture | Mixtral, 8 experts" if "experts" in kind else "| architecture | Llama, MLP") in card


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_exported_is_imported_as_it_was(kind, tmp_path):
    model = MODELS[kind]()
    assert run(exported_folder(model, tmp_path), tmp_path / "back.pt") == 0
    back = load_model(tmp_path / "back.pt")
    assert dataclasses.replace(back.config, tokenizer="builtin") == model.config
    assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("kind", ["dense", "experts, grown"])
def test_large_models_leave_in_shards_that_transformers_joins(kind, tmp_path, transformers, monkeypatch):
    monkeypatch.setattr(export, "SHARD_BYTES", 300_000)
    model = MODELS[kind]()
    folder = exported_folder(model, tmp_path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    shards = sorted(set(index["weight_map"].values()))
    assert len(shards) > 1 and shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    assert {path.name for path in folder.glob("*.safetensors")} == set(shards)
    for name in shards:
        content = load_file(folder / name)
        assert all(index["weight_map"][tensor] == name for tensor in content)
        assert len(content) == 1 or sum(tensor.nbytes for tensor in content.values()) <= 300_000
    assert index["metadata"]["total_size"] == 4 * count_parameters(model).total
    assert drift(model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()) <= TOLERANCE


def test_the_coefficient_of_mixtrals_balance_loss_is_that_of_the_run(tmp_path, transformers):
    """Its loss adds up over a token's experts, ours takes the mean; and with the coefficient they are one loss."""
    history = History(tmp_path / "training_history.jsonl")
    history.write(
        "run", data={"source": "s"}, config={"seed": 7, "balance_weight": 0.5}, device="cpu", precision="fp32"
    )
    history.close()
    model = lively_moe_model(dataclasses.replace(GEOMETRY, n_layers=1))
    folder = exported_folder(model, tmp_path)
    peer = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    assert peer.config.router_aux_loss_coef == 0.25
    theirs = peer(TOKENS, output_router_logits=True).aux_loss * peer.config.router_aux_loss_coef
    ours = 0.5 * model.hidden(TOKENS)[1][0].load_balancing_loss
    assert theirs.item() == pytest.approx(ours.item(), rel=1e-5)


def gate_for_up(weights):
    names = [name for name in weights if name.endswith("gate_proj.weight")]
    for name in names:
        other = name.replace("gate_proj", "up_proj")
        weights[name], weights[other] = weights[other], weights[name]


def experts_exchanged(weights):
    for part in ("w1", "w2", "w3"):
        first, second = (f"model.layers.0.block_sparse_moe.experts.{e}.{part}.weight" for e in (0, 1))
        weights[first], weights[second] = weights[second], weights[first]


def keys_of_the_other_group(weights):
    name = "model.layers.1.self_attn.k_proj.weight"
    weights[name] = weights[name].roll(4, 0)


def query_groups_interleaved(weights):
    """Queries in the order of files whose heads are (query, key-value head)."""
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = weights[name].unflatten(0, (4, 2, 4)).transpose(0, 1).flatten(0, 2).contiguous()


@pytest.mark.parametrize(
    "kind, harm",
    [
        ("dense", gate_for_up), ("dense", keys_of_the_other_group), ("dense", query_groups_interleaved),
        ("experts", experts_exchanged), ("experts", keys_of_the_other_group),
    ],
)  # fmt: skip
def test_wrong_weights_exceed_the_tolerance(kind, harm, tmp_path, transformers):
    model = MODELS[kind]()
    folder = exported_folder(model, tmp_path)
    weights = load_file(folder / "model.safetensors")
    harm(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert drift(model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()) > 10 * TOLERANCE


@pytest.mark.parametrize(
    "kind, changes",
    [
        ("dense", {"rms_norm_eps": 1e-1}),
        ("dense", {"rope_theta": 50.0}),
        ("dense", {"hidden_act": "gelu"}),
        ("dense, scaled, grown", {"rope_scaling": None}),
        ("experts", {"num_experts_per_tok": 1}),
    ],
    ids=str,
)
def test_wrong_settings_exceed_the_tolerance(kind, changes, tmp_path, transformers):
    model = MODELS[kind]()
    folder = exported_folder(model, tmp_path)
    change_config(folder, **changes)
    assert drift(model, transformers.AutoModelForCausalLM.from_pretrained(folder).eval()) > TOLERANCE


# --- in


def variant(number: int, transformers):
    """A random model of one of the four families, and the way in which its folder is written."""
    draw = random.Random(number)
    family = ("Llama", "Mistral", "Mixtral", "GPTNeoX")[number % 4]
    n_heads = draw.choice((2, 4, 6))
    settings = {
        "vocab_size": draw.choice((128, 201)),
        "hidden_size": n_heads * draw.choice((4, 8, 12)),
        "num_hidden_layers": draw.choice((1, 2)),
        "num_attention_heads": n_heads,
        "max_position_embeddings": draw.choice((24, 64)),
        "tie_word_embeddings": draw.random() < 0.5,
        "initializer_range": 0.2,
    }
    theta = draw.choice((100.0, 10_000.0, 500_000.0))
    if family == "GPTNeoX":
        settings |= {
            "intermediate_size": 4 * settings["hidden_size"],
            "layer_norm_eps": draw.choice((1e-5, 1e-3)),
            "use_parallel_residual": draw.random() < 0.5,
            "rope_parameters": {
                "rope_theta": theta, "rope_type": "default", "partial_rotary_factor": draw.choice((0.5, 1.0)),
            },
        }  # fmt: skip
    else:
        scaling = {}
        if draw.random() < 0.5:
            scaling = {
                "rope_type": "llama3", "factor": draw.choice((4.0, 8.0)), "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 16,
            }  # fmt: skip
        settings |= {
            "intermediate_size": draw.choice((20, 56, 88)),
            "num_key_value_heads": draw.choice([n for n in (1, 2, 3, 4, 6) if n_heads % n == 0]),
            "rms_norm_eps": draw.choice((1e-6, 1e-3)),
            "rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling},
        }
        if family != "Llama":
            settings["sliding_window"] = draw.choice((None, 64))
        if family == "Mixtral":
            settings |= {"num_local_experts": draw.choice((2, 4)), "num_experts_per_tok": draw.choice((1, 2))}
    dtype = draw.choice((torch.float32, torch.float16, torch.bfloat16))
    return family, settings, dtype, draw.random() < 0.3, draw.random() < 0.5


@pytest.mark.parametrize("number", range(72))
def test_an_imported_model_computes_what_transformers_computes(number, tmp_path, transformers):
    """Families, sizes, groups, scaled positions, epsilons, tied or not, dtypes, shards, today's files and older ones."""
    family, settings, dtype, is_sharded, is_older = variant(number, transformers)
    torch.manual_seed(number)
    peer = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{family}Config")(**settings))
    with torch.no_grad():
        for parameter in peer.parameters():
            if parameter.dim() == 1:  # gains and biases
                parameter.add_(0.2 * torch.randn_like(parameter))
    peer = peer.to(dtype).eval()
    peer.save_pretrained(tmp_path, max_shard_size="8KB" if is_sharded else "5GB")
    assert (tmp_path / "model.safetensors.index.json").is_file() == is_sharded
    if is_older:
        config = json.loads((tmp_path / "config.json").read_text())
        rope = config.pop("rope_parameters")
        theta, share = rope.pop("rope_theta"), rope.pop("partial_rotary_factor", None)
        config |= {"rope_scaling": rope if len(rope) > 1 else None, "torch_dtype": config.pop("dtype")}
        older = {"rotary_emb_base": theta, "rotary_pct": share} if family == "GPTNeoX" else {"rope_theta": theta}
        (tmp_path / "config.json").write_text(json.dumps(config | older))
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(128, (2, 24), generator=torch.Generator().manual_seed(number))
    assert drift(import_hf.read_model(tmp_path), peer, tokens) <= TOLERANCE


def test_variants_are_of_every_kind(transformers):
    drawn = [variant(number, transformers) for number in range(72)]
    assert {family for family, *_ in drawn} == {"Llama", "Mistral", "Mixtral", "GPTNeoX"}
    assert {dtype for _, _, dtype, *_ in drawn} == {torch.float32, torch.float16, torch.bfloat16}
    assert len({json.dumps(settings) for _, settings, *_ in drawn}) == 72
    types = [settings["rope_parameters"]["rope_type"] for _, settings, *_ in drawn]
    groups = [s["num_attention_heads"] // s["num_key_value_heads"] for f, s, *_ in drawn if f != "GPTNeoX"]
    assert types.count("llama3") > 10 and {1, 2, 3} <= set(groups)


def test_left_out_settings_are_those_of_transformers(transformers):
    for kind, name in (("llama", "Llama"), ("mistral", "Mistral"), ("mixtral", "Mixtral")):
        theirs = getattr(transformers, f"{name}Config")()
        for field, value in (DEFAULTS | OTHER_DEFAULTS[kind]).items():
            if field == "rope_theta":
                assert theirs.rope_parameters["rope_theta"] == value
            elif value is not None:
                assert getattr(theirs, field, value) == value, (kind, field)


SMOLLM2 = {
    "architectures": ["LlamaForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 1,
    "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 576, "initializer_range": 0.041666666666666664,
    "intermediate_size": 1536, "is_llama_config": True, "max_position_embeddings": 8192, "mlp_bias": False,
    "model_type": "llama", "num_attention_heads": 9, "num_hidden_layers": 30, "num_key_value_heads": 3,
    "pad_token_id": 2, "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_interleaved": False, "rope_scaling": None,
    "rope_theta": 100000, "tie_word_embeddings": True, "torch_dtype": "bfloat16", "transformers_version": "4.42.3",
    "use_cache": True, "vocab_size": 49152,
}  # fmt: skip


def test_the_settings_of_smollm2_make_its_geometry():
    """As released."""
    config = from_llama_config(SMOLLM2)
    assert (config.n_kv_heads, config.head_dim, config.d_hidden) == (3, 64, 1536)
    assert count_parameters(config).total == 134_515_008  # as its card says: 135 M
    assert config.grown(4 / 3, 2).n_kv_heads == 4 and config.grown(1.33333, 2).n_heads == 12


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"model_type": "qwen2"}, "model_type is 'qwen2', must be 'gpt_neox', 'llama', 'mistral' or 'mixtral'"),
        ({"model_type": ["llama"]}, "model_type is ['llama']"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "architectures is ['LlamaForSequenceClassification']"),
        ({"attention_bias": True}, "attention_bias is True, must be false"),
        ({"mlp_bias": True}, "mlp_bias is True, must be false"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu', must be 'silu'"),
        ({"head_dim": 8}, "head_dim is 8, must be hidden_size / num_attention_heads, 4"),
        ({"num_key_value_heads": 3}, "num_key_value_heads is 3, must divide num_attention_heads, 8"),
        ({"num_key_value_heads": 0}, "num_key_value_heads is 0, must be a whole number above 0"),
        ({"hidden_size": "32"}, "hidden_size is '32', must be a whole number"),
        ({"rms_norm_eps": None}, "rms_norm_eps is None, must be a number above 0"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "the rope_type of RoPE is 'linear', must be 'default' or"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "the rope_type of RoPE is 'yarn'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "needs low_freq_factor, high_freq_factor, original_max"),
        ({"rope_scaling": {"rope_type": "default", "factor": 2.0}}, "of rope_type 'default' has no factor"),
        ({"rope_scaling": {"mrope_section": [1]}}, "mrope_section of rope_scaling is [1]"),
        ({"rope_scaling": "linear"}, "rope_scaling is 'linear', must be an object or null"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_parameters": {"rope_type": "default"}},
            "beside other rope_parameters: leave one of them",
        ),
        ({"rope_parameters": {"rope_theta": 7.0}}, "rope_theta is 10000.0, but it is 7.0 elsewhere: leave one of them"),
        ({"rope_scaling": {"type": "linear", "rope_type": "default"}}, "has two types"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5, a field that we do not know"),
        ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5, must be 1"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}, but only plain weights"),
        ({"sliding_window": 16}, "sliding_window is 16, but attention here sees all 48 positions: give --context-length 16"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types is"),
        ({"attention_multiplier": 2.0}, "attention_multiplier is 2.0, a field that we do not know"),
        ({"auto_map": {"AutoModel": "x.Y"}}, "auto_map is"),
        ({"eos_token_id": 17}, "eos_token_id is 17, which is no special token of tokenizer.json"),
        ({"eos_token_id": [[4096]]}, "eos_token_id is [4096], which is no special token"),
        ({"eos_token_id": [4096, 9999]}, "eos_token_id is 9999, which is no special token"),
        ({"num_hidden_layers": 3}, "the weights lack model.layers.2."),
        ({"num_hidden_layers": 1}, "is none of a Llama's"),
        ({"intermediate_size": 80}, "by config.json it has to be (32, 80)"),
        ({"tie_word_embeddings": False}, "the weights lack lm_head.weight"),
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_read_is_refused_by_the_name_of_its_field(changes, text, tmp_path, capsys):
    folder = exported_folder(MODELS["dense"](), tmp_path)
    change_config(folder, **changes)
    assert run(folder, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_a_sliding_window_that_hides_nothing_is_none(tmp_path):
    folder = exported_folder(MODELS["dense"](), tmp_path)
    change_config(folder, model_type="mistral", architectures=["MistralForCausalLM"], sliding_window=16)
    assert run(folder, tmp_path / "short.pt", "--context-length", 16) == 0
    assert load_model(tmp_path / "short.pt").config.context_length == 16
    config = json.loads((folder / "config.json").read_text())
    del config["sliding_window"]  # then it is transformers' own default
    with pytest.raises(UserError, match="sliding_window is 4096, but attention here sees all 8,192 positions"):
        from_llama_config(config | {"max_position_embeddings": 8192})


@pytest.mark.parametrize(
    "harm, text",
    [
        (lambda weights: weights.pop("model.layers.1.self_attn.v_proj.weight"), "lack model.layers.1.self_attn.v_proj"),
        (lambda weights: weights.update(colour=torch.zeros(1)), "the tensor colour is none of a Llama's"),
        (lambda weights: weights.update({"lm_head.weight": torch.ones(4097, 32)}), "tie_word_embeddings is true, but"),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(32, dtype=torch.int8)}),
            "(32,) of int8, but by config.json it has to be (32,) of floating-point numbers",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.zeros(32).to(torch.float8_e4m3fn)}),
            "(32,) of float8_e4m3fn, but",
        ),
        (
            lambda weights: weights["model.norm.weight"][3:4].fill_(torch.nan),
            "model.norm.weight holds values that are no",
        ),
        (
            lambda weights: weights.update({"model.norm.weight": torch.full((32,), 1e300, dtype=torch.float64)}),
            "model.norm.weight holds values that are no fp32 numbers",
        ),
    ],
)
def test_weights_that_are_missing_unknown_or_quantised_are_named(harm, text, tmp_path, capsys):
    folder = exported_folder(MODELS["dense"](), tmp_path)
    change_weights(folder, harm)
    assert run(folder, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert text in error and error.count("\n") == 1 and not (tmp_path / "out.pt").exists()


def test_an_output_matrix_beside_a_tied_one_that_is_the_same_is_read(tmp_path):
    folder = exported_folder(MODELS["dense"](), tmp_path)
    change_weights(
        folder, lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()})
    )
    assert run(folder, tmp_path / "out.pt") == 0


def with_a_second_end(tmp_path):
    """An exported folder whose tokenizer has two special tokens: 4096, which ends our texts, and 4097."""
    folder = exported_folder(MODELS["dense"](), tmp_path)
    content = json.loads((folder / "tokenizer.json").read_text())
    content["added_tokens"].append({**content["added_tokens"][0], "id": 4097, "content": "<|im_end|>"})
    (folder / "tokenizer.json").write_text(json.dumps(content))
    change_config(folder, vocab_size=4104)
    change_weights(
        folder,
        lambda w: w.update(
            {"model.embed_tokens.weight": torch.cat((w["model.embed_tokens.weight"], torch.zeros(7, 32)))}
        ),
    )
    return folder


@pytest.mark.parametrize(
    "config, generation, deciding",
    [
        ([4097, 4096], None, "config.json"),
        (4097, None, "config.json"),
        (4096, {"eos_token_id": [4096, 4097]}, "generation_config.json"),
        (None, {"eos_token_id": 4097}, "generation_config.json"),
        (4097, {"eos_token_id": 4096}, ""),
        (4097, {}, ""),
        ([4096], None, ""),
    ],
)
def test_where_texts_end_otherwise_a_line_says_so(config, generation, deciding, tmp_path, transformers, capsys):
    folder = with_a_second_end(tmp_path)
    change_config(folder, eos_token_id=config)
    (folder / "generation_config.json").unlink()
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    assert run(folder, tmp_path / "out.pt") == 0
    text = "Texts end with id 4096 here; in transformers with <|im_end|> (id 4097)"
    out = capsys.readouterr().out
    assert (f"{text}, by {deciding}\n" in out) if deciding else (text not in out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    assert (4097 in (theirs if isinstance(theirs, list) else [theirs])) == bool(deciding)


@pytest.mark.parametrize("end", [17, [4096, 9999], "</s>", [[4096]], {}, True])
@pytest.mark.parametrize("name", import_hf.SAY_THE_ENDS)
def test_an_end_that_is_no_special_token_is_refused_with_its_files_name(name, end, tmp_path, capsys):
    folder = exported_folder(MODELS["dense"](), tmp_path)
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token_id": end}))
    assert run(folder, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert f"{path}: eos_token_id is " in error and error.count("\n") == 1 and not (tmp_path / "out.pt").exists()


def end_texts_with(number, folder):
    change_config(folder, eos_token_id=number)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": number}))


def test_a_model_with_sentencepieces_tokenizer_is_read_trained_on_and_opened_again(tmp_path, transformers):
    """BPE with byte fallback, whose texts end with </s>, as of Llama, TinyLlama and Mistral."""
    source = exported_folder(MODELS["dense"](), tmp_path)
    sentencepiece_tokenizer(source / "tokenizer.json")
    end_texts_with(2, source)
    assert run(source, tmp_path / "dense_model.pt") == 0
    assert export.main(["--checkpoint", str(tmp_path / "dense_model.pt"), "--out", str(tmp_path / "again")]) == 0
    names = json.loads((tmp_path / "again" / "tokenizer_config.json").read_text())
    assert (
        names["eos_token"] == "</s>"
        and json.loads((tmp_path / "again" / "config.json").read_text())["eos_token_id"] == 2
    )
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "again")
    ours = load_tokenizer(str(tmp_path / load_model(tmp_path / "dense_model.pt").config.tokenizer))
    for text in ("Once upon a time, there was a girl.", "naïve café", "日本語 🙂"):
        ids = ours.encode_ordinary(text)
        assert theirs(text, add_special_tokens=False).input_ids == ids
        assert theirs.decode(ids) == text and ours.decode(ids) == " " + text


def test_a_tokenizer_that_loses_text_is_refused(tmp_path, capsys):
    source = exported_folder(MODELS["dense"](), tmp_path)
    sentencepiece_tokenizer(source / "tokenizer.json", byte_fallback=False)
    end_texts_with(2, source)
    assert run(source, tmp_path / "out.pt") == 2
    error = capsys.readouterr().err
    assert "loses text" in error and error.count("\n") == 1 and not (tmp_path / "out.pt").exists()


def test_views_are_all_of_the_model_and_their_settings_map_there_and_back():
    for config in (GEOMETRY, SCALED, GEOMETRY.upcycled(4, 2), SCALED.upcycled(8, 1)):
        build = lively_dense_model if not config.is_moe else lively_moe_model
        model = build(dataclasses.replace(config, n_experts=0, top_k=2))
        assert sum(view.numel() for view in llama_weights(model).values()) == count_parameters(model).total
        back = from_llama_config(llama_config(config), tokenizer="builtin")
        assert back == config
