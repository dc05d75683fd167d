"""The transformer: parameter counts of the card, equality with GPT-NeoX, precision, files."""

import dataclasses

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from config import ModelConfig, TrainingConfig, UserError
from durable_files import write_tensors
from hugging_face.gpt_neox import neox_config, neox_weights
from models import (
    Transformer,
    build_dense_model,
    build_moe_model,
    count_parameters,
    exact_arithmetic,
    load_model,
    next_token_loss,
    products,
    save_model,
)
from models import loss as loss_module
from test_growth_checks import lively_dense_model, lively_moe_model
from tests.rounding import require_clear_choices

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, context_length=16)


def tokens(config: ModelConfig, batch: int = 2, length: int | None = None, seed: int = 0) -> torch.Tensor:
    length = config.context_length + 1 if length is None else length
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def test_reference_geometry_counts_as_on_the_card():
    dense, moe, large = (count_parameters(geometry) for geometry in TrainingConfig().phase_geometries(50_257))
    assert (dense.total, dense.active, dense.idle_experts) == (100_038_016, 100_038_016, 0)
    assert (moe.total, moe.active, moe.idle_experts) == (371_640_256, 138_878_272, 42)
    assert f"{moe.inactive / 1e6:.2f} {moe.efficiency:.1%}" == "232.76 37.4%"
    assert (large.total, large.active, large.idle_experts) == (2_155_790_208, 693_264_000, 66)


def test_counts_of_a_model_are_those_of_its_parameters():
    model = build_moe_model(dataclasses.replace(SMALL, n_experts=4, top_k=1))
    count = count_parameters(model)
    assert count.total == sum(p.numel() for p in model.parameters()) == count_parameters(model.config).total
    expert = 8 * 32 * 32 + 5 * 32
    assert count.total - count.active == 2 * 3 * expert


def test_logits_equal_gpt_neox():
    transformers = pytest.importorskip(
        "transformers", reason="transformers is in requirements-dev.txt, on Python 3.11 and newer"
    )
    model = lively_dense_model(SMALL)
    peer = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**neox_config(SMALL))).eval()
    weights = neox_weights(model) | {"lm_head.weight": model.embedding.weight}
    missing = peer.load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys and not missing.missing_keys
    batch = tokens(SMALL, length=16)
    with torch.no_grad():
        ours, theirs = model(batch), peer(batch).logits
    assert theirs.std() > 0.05
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_the_future_does_not_reach_the_past():
    model = lively_moe_model(SMALL)
    before = tokens(SMALL, length=16)
    after = before.clone()
    after[:, 9] = (after[:, 9] + 1) % SMALL.vocab_size
    require_clear_choices(model, before)
    with torch.no_grad():
        difference = (model(before) - model(after)).abs().amax(-1)
    assert difference[:, :9].max() < 1e-5
    assert difference[:, 9:].min() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_and_its_gradients_equal_plain_cross_entropy_also_in_chunks(dtype, monkeypatch):
    model = lively_dense_model(SMALL).to(dtype)
    batch = tokens(SMALL, batch=3)
    plain = torch.nn.functional.cross_entropy(model(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten())
    expected = torch.autograd.grad(plain, list(model.parameters()))
    for chunk in (4096, 7):
        monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_, chunk=chunk: chunk)
        loss, _ = next_token_loss(model, batch)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss, plain)
        torch.testing.assert_close(torch.autograd.grad(loss, list(model.parameters())), expected)


def test_sums_that_are_too_long_for_a_device_are_made_of_shorter_ones(monkeypatch):
    """A whole model's loss and gradients, where no sum over tokens or over the vocabulary may be so long."""
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda *_: 31)  # as chunks of 4,096 are, by themselves
    model = lively_moe_model(SMALL).double()
    batch = tokens(SMALL, batch=3)
    terms = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm):
                terms.append(args[-2].shape[1])
            return func(*args, **kwargs or {})

    def loss_and_gradients():
        terms.clear()
        with Watch():
            loss, _ = next_token_loss(model, batch)
            return loss, torch.autograd.grad(loss, list(model.parameters()))

    of_features, n_tokens = {32, 3 * 32, 4 * 32}, 3 * 16
    loss, gradients = loss_and_gradients()
    assert {n_tokens, SMALL.vocab_size} <= set(terms)
    for limit in (47, 33):
        monkeypatch.setattr(products, "longest_sum", lambda device, limit=limit: limit)
        in_slices = loss_and_gradients()
        assert max(set(terms) - of_features) <= limit
        torch.testing.assert_close(in_slices, (loss, gradients))


def test_only_on_mps_are_sums_cut_and_none_has_32767_terms_there():
    assert products.longest_sum(torch.device("mps")) < 32_767
    assert min(products.longest_sum(torch.device(kind)) for kind in ("cpu", "cuda")) > 2**31
    a, b = torch.ones(2, 7), torch.arange(7.0)[:, None]
    assert products.long_product(a, b).tolist() == [[21.0], [21.0]]
    assert products.long_product(a[:, :0], b[:0]).tolist() == [[0.0], [0.0]]


def test_evaluation_computes_no_gradients(monkeypatch):
    model = lively_dense_model(SMALL)
    wanted = []
    forward = loss_module.ChunkedCrossEntropy.forward

    def watched(ctx, *arguments):
        wanted.append(any(ctx.needs_input_grad))
        return forward(ctx, *arguments)

    monkeypatch.setattr(loss_module.ChunkedCrossEntropy, "forward", watched)
    next_token_loss(model, tokens(SMALL))
    with torch.no_grad():
        next_token_loss(model, tokens(SMALL))
    assert wanted == [True, False]


def test_loss_computes_no_gradient_that_nobody_wants():
    model = lively_dense_model(SMALL).requires_grad_(False)
    model.blocks[0].mlp.up.weight.requires_grad_(True)
    next_token_loss(model, tokens(SMALL))[0].backward()
    assert model.embedding.weight.grad is None and model.blocks[0].mlp.up.weight.grad.any()


def test_chunks_are_large_only_where_a_gpu_trains(monkeypatch):
    chunk = loss_module.tokens_per_chunk
    assert [chunk(torch.device(d), t) for d in ("cuda", "mps", "cpu") for t in (True, False)] == [4096] + [1024] * 5
    seen = []
    monkeypatch.setattr(loss_module, "tokens_per_chunk", lambda device, is_trained: seen.append(is_trained) or 1024)
    model, batch = lively_dense_model(SMALL), tokens(SMALL)
    next_token_loss(model, batch)
    with torch.no_grad():
        next_token_loss(model, batch)
    assert seen == [True, False]


def test_compute_dtype_changes_products_and_leaves_weights():
    model = lively_moe_model(SMALL)
    batch = tokens(SMALL)
    exact = next_token_loss(model, batch)[0]
    model.compute_dtype = torch.bfloat16
    rounded = next_token_loss(model, batch)[0]
    rounded.backward()
    assert rounded.dtype == torch.float32 and 0 < abs(rounded - exact) < 0.05
    assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
    with exact_arithmetic(model):
        assert next_token_loss(model, batch)[0] == exact
    assert model.compute_dtype == torch.bfloat16


def test_every_parameter_receives_a_gradient():
    model = lively_moe_model(SMALL)
    next_token_loss(model, tokens(SMALL, batch=8))[0].backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_a_model_survives_the_disk(tmp_path):
    model = lively_moe_model(SMALL)
    save_model(model, tmp_path / "model.pt")
    again = load_model(tmp_path / "model.pt")
    assert again.config == model.config and [f.name for f in tmp_path.iterdir()] == ["model.pt"]
    assert torch.equal(again(tokens(SMALL, length=16)), model(tokens(SMALL, length=16)))
    assert all(p.requires_grad for p in again.parameters())


def damaged_files(folder):
    whole = folder / "whole.pt"
    save_model(lively_dense_model(SMALL), whole)
    content = torch.load(whole, weights_only=True)
    torch.save(content, folder / "unchecked.pt")
    flipped = bytearray(whole.read_bytes())
    flipped[len(flipped) // 3] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "truncated.pt").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    (folder / "empty.pt").touch()
    (folder / "text.pt").write_text("no model at all")
    (folder / "pickle.pt").write_bytes(b".")
    write_tensors({"weights": content["weights"]}, folder / "foreign.pt")
    write_tensors({**content, "config": {**content["config"], "d_model": 64}}, folder / "geometry.pt")
    write_tensors({**content, "config": {"colour": 3}}, folder / "fields.pt")
    write_tensors({**content, "config": {**content["config"], "n_heads": 5}}, folder / "odd.pt")
    return whole


@pytest.mark.parametrize(
    "name, text",
    [
        ("missing.pt", "no model file at"),
        ("pickle.pt", "damaged or no model of ours"),
        ("truncated.pt", "damaged or no model of ours"),
        ("empty.pt", "damaged or no model of ours"),
        ("text.pt", "damaged or no model of ours"),
        ("flipped.pt", "its checksum is wrong"),
        ("unchecked.pt", "does not end with a checksum"),
        ("foreign.pt", "not a model of ours"),
        ("geometry.pt", "do not fit the geometry"),
        ("fields.pt", "do not fit the geometry"),
        ("odd.pt", "do not fit the geometry"),
    ],
)
def test_files_that_are_no_model_are_refused_in_one_line(tmp_path, name, text):
    damaged_files(tmp_path)
    with pytest.raises(UserError, match=text) as caught:
        load_model(tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_a_pickle_with_code_is_not_run(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    write_tensors(Malicious(), tmp_path / "evil.pt")
    with pytest.raises(UserError):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_a_failed_save_keeps_the_file_that_was_there(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    save_model(lively_dense_model(SMALL), path)
    before = path.read_bytes()

    def full_disk(content, file):
        file.write(b"half a mod")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(UserError, match="No space left"):
        save_model(lively_dense_model(SMALL, seed=1), path)
    assert path.read_bytes() == before and [f.name for f in tmp_path.iterdir()] == ["model.pt"]


def test_too_many_positions_are_refused():
    with pytest.raises(ValueError, match="context length is 16"):
        build_dense_model(SMALL)(tokens(SMALL, length=17))


@pytest.mark.parametrize(
    "change, text",
    [
        ({"d_model": 30}, "d_model 30 is not divisible by n_heads 4"),
        ({"d_model": 36}, "= 9 is odd"),
        ({"n_experts": 2, "top_k": 3}, "top_k is 3"),
        ({"n_layers": 0}, "n_layers is 0"),
        ({"d_model": 4_000_000_000}, "d_model is 4000000000, must be between 1 and 1048576"),
        ({"vocab_size": -1}, "vocab_size is -1"),
    ],
)
def test_impossible_geometries_are_refused(change, text):
    with pytest.raises(UserError, match=text):
        dataclasses.replace(SMALL, **change)


def test_builders_refuse_the_other_kind():
    with pytest.raises(UserError, match="no experts"):
        build_dense_model(dataclasses.replace(SMALL, n_experts=4))
    with pytest.raises(UserError, match="needs n_experts"):
        build_moe_model(SMALL)


def test_the_same_seed_builds_the_same_model():
    first, second, other = (build_dense_model(SMALL, seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])


def test_empty_model_has_no_hidden_state():
    assert list(Transformer.empty(SMALL).buffers()) == []
