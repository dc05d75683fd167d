"""Llama's form of the network: against its definition, in the cache, under Muon, on disk and through a whole run."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from test_kv_cache import TOLERANCE, largest_drift
from test_run import run

from config import ModelConfig, TrainingConfig, UserError
from models import count_parameters, experts, load_model, save_model, summary
from models.attention import rope_tables, scaled_frequencies
from models.moe import MoE
from phases import PHASES
from report.history import read_history
from test_growth_checks import lively_dense_model, lively_moe_model
from training.flops import step_flops
from training.muon import Muon, join_fused, split_fused
from training.optimizer import build_optimizers, is_matrix
from training.orthogonalise import orthogonalisation_flops, orthogonalise

# Four heads on two key-value heads.
LLAMA = ModelConfig(
    vocab_size=97, d_model=32, n_layers=2, n_heads=4, context_length=24, architecture="llama", queries_per_kv=2,
    hidden_ratio=2.75, norm_eps=1e-3,
)  # fmt: skip
TOKENS = torch.randint(97, (2, 24), generator=torch.Generator().manual_seed(0))


# --- the definition


def rms_norm(x, gain, eps):
    return gain * x / (x.square().mean(-1, keepdim=True) + eps).sqrt()


def turned(x_TK, base):
    """RoPE, pair by pair, as complex numbers."""
    T, K = x_TK.shape
    pairs = torch.complex(x_TK[:, : K // 2], x_TK[:, K // 2 :])
    angle = torch.outer(torch.arange(T).double(), base ** (-torch.arange(0, K, 2).double() / K))
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), -1)


def attention_of(x_TD, block, config):
    K, Q, T = config.head_dim, config.queries_per_kv, len(x_TD)
    rows = block.attention.qkv.weight.split(K)  # (key-value head, its queries|key|value), each K rows
    mask = torch.full((T, T), -math.inf, dtype=x_TD.dtype).triu(1)
    heads = []
    for head in range(config.n_heads):
        group, query = divmod(head, Q)
        q, k, v = (x_TD @ rows[group * (Q + 2) + part].T for part in (query, Q, Q + 1))
        scores = turned(q, config.rope_base) @ turned(k, config.rope_base).T / math.sqrt(K)
        heads.append((scores + mask).softmax(-1) @ v)
    return torch.cat(heads, -1) @ block.attention.out.weight.T


def mlp_of(x_TD, up, down):
    gate, up = up
    return (F.silu(x_TD @ gate.T) * (x_TD @ up.T)) @ down.T


def logits_by_definition(model, tokens_T):
    config = model.config
    x_TD = model.embedding.weight[tokens_T]
    for block in model.blocks:
        x_TD = x_TD + attention_of(rms_norm(x_TD, block.attention_norm.weight, config.norm_eps), block, config)
        x_TD = x_TD + mlp_of(
            rms_norm(x_TD, block.mlp_norm.weight, config.norm_eps), block.mlp.up.weight, block.mlp.down.weight
        )
    return rms_norm(x_TD, model.final_norm.weight, config.norm_eps) @ model.output_matrix.T


@pytest.mark.parametrize("queries_per_kv", [1, 2, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_a_dense_llama_is_its_definition(tied, queries_per_kv):
    model = lively_dense_model(dataclasses.replace(LLAMA, tied=tied, queries_per_kv=queries_per_kv)).double()
    with torch.no_grad():
        for tokens_T in TOKENS:
            torch.testing.assert_close(
                model(tokens_T[None])[0], logits_by_definition(model, tokens_T), rtol=1e-9, atol=1e-9
            )
    assert not any(name.endswith("bias") for name, _ in model.named_parameters())


@pytest.mark.parametrize(
    "fault", ["key-value heads in another order", "another epsilon", "another base", "gate for up"]
)
def test_another_reading_of_the_same_weights_is_told_apart(fault):
    model = lively_dense_model(LLAMA).double()
    with torch.no_grad():
        expected = model(TOKENS[:1])[0]
        if fault == "another epsilon":
            model.config = dataclasses.replace(LLAMA, norm_eps=1e-1)
        if fault == "another base":
            model.config = dataclasses.replace(LLAMA, rope_base=50.0)
        for block in model.blocks:
            if fault == "key-value heads in another order":
                rows = block.attention.qkv.weight.unflatten(0, (2, 4, 8))
                rows[:, 2:] = rows[:, 2:].flip(0).clone()
            if fault == "gate for up":
                block.mlp.up.weight.copy_(block.mlp.up.weight.flip(0))
        assert (logits_by_definition(model, TOKENS[0]) - expected).abs().max() > 1e-3


def token_by_token(moe: MoE, x_ND: torch.Tensor) -> torch.Tensor:
    rows = []
    for x_D in x_ND:
        chosen = (moe.router.weight @ x_D).topk(moe.top_k)
        gates = chosen.values.softmax(-1)
        outputs = [mlp_of(x_D[None], moe.up.weight[e], moe.down.weight[e])[0] for e in chosen.indices]
        rows.append(sum(gate * y for gate, y in zip(gates, outputs)))
    return torch.stack(rows)


@pytest.mark.parametrize("keeps_hidden", [True, False])
@pytest.mark.parametrize("is_grouped", [True, False])
def test_experts_and_their_gradients_are_their_definition(is_grouped, keeps_hidden, monkeypatch):
    """One call for all experts is what CUDA runs: here its code path runs on the CPU."""
    monkeypatch.setattr(experts, "grouped_mm_serves", lambda *_: is_grouped)
    dtype = torch.float32 if is_grouped else torch.float64
    moe = lively_moe_model(LLAMA).blocks[1].mlp.to(dtype)
    moe.keeps_hidden = keeps_hidden
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    results = []
    for y in (moe(x)[0][0], token_by_token(moe, x[0])):
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, *moe.parameters()])])
    for ours, expected in zip(*results):
        torch.testing.assert_close(ours, expected, atol=1e-9 if dtype == torch.float64 else 1e-4, rtol=1e-4)


# --- scaled positions


def test_scaled_frequencies_are_those_of_transformers():
    utils = pytest.importorskip("transformers.modeling_rope_utils")
    from transformers import LlamaConfig

    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}  # fmt: skip
    theirs = LlamaConfig(
        hidden_size=128, num_attention_heads=2, max_position_embeddings=512,
        rope_parameters={"rope_theta": 500.0, **scaling},
    )  # fmt: skip
    expected, _ = utils.ROPE_INIT_FUNCTIONS["llama3"](theirs, "cpu")
    plain = 500.0 ** (-torch.arange(0, 64, 2, dtype=torch.float32) / 64)
    found = scaled_frequencies(plain, 8.0, 1.0, 4.0, 64)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    # Fast pairs stay, slow ones turn eight times more slowly, and there are some between.
    ratio = plain / found
    assert ratio[0] == 1 and ratio[-1] == pytest.approx(8) and ((ratio > 1.01) & (ratio < 7.9)).any()


def test_scaling_reaches_the_tables_and_the_logits():
    scaled = dataclasses.replace(LLAMA, rope_scaling=(8.0, 1.0, 4.0, 8))
    assert not torch.equal(
        rope_tables(LLAMA, 24, "cpu", torch.float32)[0], rope_tables(scaled, 24, "cpu", torch.float32)[0]
    )
    model = lively_dense_model(LLAMA)
    with torch.no_grad():
        plain = model(TOKENS)
        model.config = scaled
        assert (model(TOKENS) - plain).abs().max() > 1e-3


# --- the cache


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("build", [lively_dense_model, lively_moe_model])
def test_a_text_read_in_parts_is_the_text_read_at_once(build, dtype):
    model = build(dataclasses.replace(LLAMA, vocab_size=101)).to(dtype)
    for parts in ([1] * 24, [3, 4, 1, 16], [24]):
        assert largest_drift(model, parts) < TOLERANCE[dtype], parts
    # Two key-value heads are kept, not four.
    assert model.new_cache(2, 24).kept_L2BCGK.shape == (2, 2, 2, 24, 2, 8)


# --- training


def test_muon_orthogonalises_each_part_of_a_fused_projection_apart():
    fused = torch.randn(32, 8)  # 2 key-value heads × (2 queries, key, value) × 4 features
    parts = split_fused(fused, 4, 2)
    assert torch.equal(join_fused(parts, 4, 2), fused) and parts.shape == (4, 8, 8)
    rows = fused.split(4)
    for part, groups in zip(parts, ((0, 4), (1, 5), (2, 6), (3, 7))):
        assert torch.equal(part, torch.cat([rows[group] for group in groups]))


def test_muon_moves_gate_and_up_as_two_matrices():
    up = torch.zeros(2, 24, 16, requires_grad=True)
    muon = Muon([{"params": [up]}], weight_decay=0.0)
    muon.param_groups[0]["lr"] = 0.1
    up.grad = torch.randn(2, 24, 16, generator=torch.Generator().manual_seed(0))
    muon.step()
    alone = orthogonalise(up.grad.mT).mT * -0.1 * 1.5**0.5
    torch.testing.assert_close(up.detach(), alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("build", [lively_dense_model, lively_moe_model])
def test_muon_takes_all_matrices_and_adamw_the_rest(build):
    model = build(LLAMA)
    muon, adamw = build_optimizers(model, weight_decay=0.1, tokens=128)
    names = {parameter: name for name, parameter in model.named_parameters()}
    by_muon = {names[p] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {name for name in names.values() if is_matrix(name)}
    assert len(by_muon) + sum(len(group["params"]) for group in adamw.param_groups) == len(names)


def test_flops_count_what_the_matrices_are():
    """Of a Llama with NeoX's shapes: a third matrix in each MLP, whose products six times a parameter count."""
    neox = ModelConfig(vocab_size=97, d_model=32, n_layers=2, n_heads=4, context_length=24)
    llama = dataclasses.replace(neox, architecture="llama")
    products = 6 * 8 * 24 * (count_parameters(llama).active - count_parameters(neox).active)
    muon = 2 * orthogonalisation_flops(32, 128, torch.float32)
    assert step_flops(llama, 8) - step_flops(neox, 8) == products + muon
    shared = dataclasses.replace(llama, queries_per_kv=4)
    products = 6 * 8 * 24 * (count_parameters(llama).active - count_parameters(shared).active)
    # Three of 32 × 32 become six of 8 × 32.
    muon = 2 * (3 * orthogonalisation_flops(32, 32, torch.float32) - 6 * orthogonalisation_flops(8, 32, torch.float32))
    assert step_flops(llama, 8) - step_flops(shared, 8) == products + muon


def test_a_whole_run_in_llamas_form(tmp_path, token_cache, capsys):
    assert run(tmp_path / "c", token_cache, "--architecture", "llama") == 0
    models = [load_model(phase.path_in(tmp_path / "c")).config for phase in PHASES]
    assert [m.architecture for m in models] == ["llama"] * 3
    # 8/3 of the width, up to a multiple of 64: 128 of 32, and twice that after growth.
    assert [m.d_hidden for m in models] == [128, 128, 256]
    rows = list(read_history(tmp_path / "c" / "training_history.jsonl"))
    assert all(abs(row["jump"]) < 1e-5 for row in rows if row["event"] == "boundary")
    assert "ALL CHECKS PASSED" in capsys.readouterr().out
    assert run(tmp_path / "d", token_cache, "--architecture", "mamba") == 2
    assert "'mamba'" in capsys.readouterr().err


def test_the_card_is_neox_and_its_llama_is_as_large():
    card = TrainingConfig().dense_geometry(50_257)
    assert card == ModelConfig(50_257, 832, 7, 8) and count_parameters(card).total == 100_038_016
    llama = TrainingConfig(architecture="llama").dense_geometry(50_257)
    assert llama.d_hidden == 2240 and count_parameters(llama).total == pytest.approx(100e6, rel=0.01)


# --- files and geometries


def test_a_model_survives_the_disk(tmp_path):
    scaled = dataclasses.replace(LLAMA, rope_scaling=(8.0, 1.0, 4.0, 8))
    model = lively_moe_model(scaled)
    save_model(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert again.config == scaled.upcycled(8, 2) and hash(again.config) == hash(model.config)
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert dataclasses.replace(LLAMA, rope_scaling=[8.0, 1.0, 4.0, 8]) == scaled
    assert "4 heads on 2 key-value heads, Llama, dense" in summary(LLAMA)


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"architecture": "gpt2"}, "architecture is 'gpt2', must be one of neox, llama"),
        ({"queries_per_kv": 3}, "n_heads 4 is no multiple of queries_per_kv 3"),
        ({"queries_per_kv": 0}, "no multiple of queries_per_kv 0"),
        ({"hidden_ratio": float("nan")}, "hidden_ratio is nan"),
        ({"hidden_ratio": 0.0}, "hidden_ratio is 0.0"),
        ({"parallel_residual": True}, "are NeoX's"),
        ({"rotary_share": 0.5}, "are NeoX's"),
        ({"rope_scaling": (8.0, 1.0, 4.0)}, "must be four numbers"),
        ({"rope_scaling": (8.0, 4.0, 1.0, 64)}, "the second below the third"),
    ],
    ids=str,
)
def test_impossible_geometries_are_refused(changes, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(LLAMA, **changes)
