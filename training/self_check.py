"""Does the device compute what it should? A small model beside the CPU's, and the products of the run in their own shapes.

torch's faults on MPS and on some CUDA cards hang on shapes: on long sums, many rows, experts without any. So the
products of the run are computed here with its own vocabulary, width and number of tokens. The CPU needs to compute but
a few of those: there are `N_DISTINCT` different tokens, which come again and again. What lies in memory before and
behind an operand is large, as a kernel that reads too far is right by accident where that is zero. Nothing depends on
a router: which expert a token goes to could hang on a rounding.

Shape letters: N tokens, n different tokens, D d_model, A hidden units, F rows of the matrix that makes them (twice as
many in a Llama: gate and up), O rows of attention's first matrix, V vocabulary, E experts, k experts of a token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from command_line import is_out_of_memory
from model_config import ModelConfig
from models import Transformer, next_token_loss
from models.experts import apply_experts, assign_slots
from models.layers import activated
from models.loss import ChunkedCrossEntropy, tokens_per_chunk
from models.products import linear
from models.transformer import INIT_STD

# Agreement with the CPU's fp32, as |difference| / |expected| of logits and gradients. Rounding is
# some 1e-6 in fp32 and 1e-2 in bf16; a kernel that computes something else is of the order of 1.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 5e-2}
# The same of the worst row beside a usual one: some rows are a few times as large as others.
ROW_TOLERANCE = {torch.float32: 3e-3, torch.bfloat16: 0.15}
# As few rows as the fault of long sums on MPS needs.
N_DISTINCT = 16
CPU_WIDTH = 256
LARGE, N_AROUND = 1e4, 4096
ROWS_AT_ONCE = 4096


def find_fault(device: torch.device, dtype: torch.dtype, largest: ModelConfig, n_tokens: int) -> str:
    """What is wrong on this device in this precision; empty if nothing is.

    Args:
        largest: the run's largest model.
        n_tokens: that it learns from at once.
    """
    try:
        return fault_of_a_small_model(device, dtype, largest.is_llama) or fault_of_products(
            device, dtype, largest, n_tokens
        )
    except (RuntimeError, TypeError) as error:  # MPS refuses a dtype with a TypeError
        if is_out_of_memory(error):
            raise
        return f"it cannot be computed ({str(error).splitlines()[0]})"


def fault_of_a_small_model(device: torch.device, dtype: torch.dtype, is_llama: bool) -> str:
    # All experts serve every token: otherwise rounding alone could send one to another expert.
    geometry = ModelConfig(vocab_size=512, d_model=64, n_layers=2, n_heads=2, n_experts=4, top_k=4, context_length=64)
    if is_llama:
        geometry = dataclasses.replace(geometry, architecture="llama", queries_per_kv=2)
    tokens = torch.randint(512, (2, 65), generator=torch.Generator().manual_seed(0))
    for config in (geometry.upcycled(n_experts=0, top_k=4), geometry):
        expected = logits_and_gradients(check_model(config), tokens)
        model = check_model(config).to(device)
        model.compute_dtype = None if dtype == torch.float32 else dtype
        for name, value in logits_and_gradients(model, tokens.to(device)).items():
            difference, size = (torch.linalg.vector_norm(t) for t in (value.cpu() - expected[name], expected[name]))
            error = (difference / size).item()
            if not error <= TOLERANCE[dtype]:
                return f"{name} differ from the CPU's by {error:.1e} of their size"
        if leak := future_leak(model, tokens[:, :-1].to(device)):
            return f"changing a future token moves past logits by {leak:.1e}"
    return ""


@torch.no_grad()
def check_model(config: ModelConfig) -> Transformer:
    """A random model in which every block matters: at the usual initialisation none does."""
    model = Transformer.empty(config).initialise(torch.Generator().manual_seed(0))
    for name, parameter in model.named_parameters():
        if name.startswith("blocks") and parameter.ndim > 1:
            parameter.mul_(0.5 / INIT_STD / parameter.shape[-1] ** 0.5)
    return model


def logits_and_gradients(model: Transformer, tokens_BT: Tensor) -> dict[str, Tensor]:
    """The logits, and the gradient of the language-model loss for each kind of matrix."""
    logits = model(tokens_BT[:, :-1]).detach().float()
    next_token_loss(model, tokens_BT)[0].backward()
    block = model.blocks[0]
    matrices = {"embedding": model.embedding, "qkv": block.attention.qkv, "up": block.mlp.up, "down": block.mlp.down}
    return {"logits": logits} | {f"gradients of {name}": module.weight.grad for name, module in matrices.items()}


@torch.no_grad()
def future_leak(model: Transformer, tokens_BT: Tensor) -> float:
    """Largest change of logits before position T/2 when the token there changes; 0.0 within rounding."""
    half = tokens_BT.shape[1] // 2
    changed = tokens_BT.clone()
    changed[:, half] = (changed[:, half] + 1) % model.config.vocab_size
    before, after = (model(tokens)[:, :half].float() for tokens in (tokens_BT, changed))
    difference = (before - after).abs().max().item()
    # A token's row stands elsewhere among its expert's rows once others change: rounding, no leak.
    rounding = 1e-4 if model.compute_dtype is None else 2e-2
    return difference if difference > rounding * before.abs().max().item() else 0.0


def fault_of_products(device: torch.device, dtype: torch.dtype, largest: ModelConfig, n_tokens: int) -> str:
    shapes = Shapes.of(largest, n_tokens, device)
    for check in (projection, head, experts) if largest.is_moe else (projection, head):
        for name, found, expected in check(shapes, device, dtype):
            error = worst_row(found, expected)
            if not error <= ROW_TOLERANCE[dtype]:
                return f"{name} differ from the CPU's by {error:.1e} of their size, in the shapes of this run"
    return ""


@dataclass(frozen=True)
class Shapes:
    """Of what is computed."""

    n_rows: int
    d_model: int
    d_hidden: int
    vocab_size: int
    n_experts: int
    top_k: int
    d_qkv: int
    is_llama: bool

    @classmethod
    def of(cls, model: ModelConfig, n_tokens: int, device: torch.device) -> Shapes:
        """The run's; at most two chunks of the loss, and four experts.

        On a CPU few rows and features: it would take seconds for all, and what it computes does not hang on them.
        """
        is_cpu = device.type == "cpu"
        n_experts = min(model.n_experts, 4)
        d_qkv = (model.n_heads + 2 * model.n_kv_heads) * model.head_dim
        return cls(
            N_DISTINCT if is_cpu else max(N_DISTINCT, min(n_tokens, 2 * tokens_per_chunk(device))),
            min(model.d_model, CPU_WIDTH) if is_cpu else model.d_model,
            min(model.d_hidden, 4 * CPU_WIDTH) if is_cpu else model.d_hidden,
            model.vocab_size,
            n_experts,
            min(model.top_k, 2) if n_experts == 4 else 1,
            min(d_qkv, 3 * CPU_WIDTH) if is_cpu else d_qkv,
            model.is_llama,
        )


# What a check yields: a name, what the device computed, and what the CPU did.
Results = Iterator[tuple[str, Tensor, Tensor]]


def projection(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Results:
    """A linear layer, in the shape of attention's first."""
    D, d_qkv, n_rows = shapes.d_model, shapes.d_qkv, shapes.n_rows
    numbers = torch.Generator().manual_seed(0)
    leaves = [draw(numbers, N_DISTINCT, D), draw(numbers, d_qkv, D, std=D**-0.5)]
    names = ["outputs", "gradients of inputs", "gradients of the weight"]
    if not shapes.is_llama:
        leaves.append(draw(numbers, d_qkv))
        names.append("gradients of the bias")
    dy_nO = draw(numbers, N_DISTINCT, d_qkv)

    def layer(x_ND: Tensor, *parameters: Tensor) -> Tensor:
        return linear(x_ND, *(parameter.to(x_ND.dtype) for parameter in parameters))

    found = on_device(layer, leaves, dy_nO, n_rows, device, dtype)
    expected = on_cpu(F.linear, leaves, dy_nO, n_rows)
    for name, *both in zip(names, found, expected, strict=True):
        yield f"a linear layer's {name}", *both


def head(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Results:
    """The loss over the vocabulary. All weights are about 1, so that each part of a sum over them shows."""
    D, V, n_rows = shapes.d_model, shapes.vocab_size, shapes.n_rows
    numbers = torch.Generator().manual_seed(0)
    hidden_nD, output_VD = draw(numbers, N_DISTINCT, D, std=D**-0.5), draw(numbers, V, D, std=0.25, mean=1.0)
    target_n = torch.arange(N_DISTINCT) * (V - 1) // (N_DISTINCT - 1)
    target_N = tiled(target_n, n_rows).to(device)
    # In what is freed here the logits and the rounded output matrix will lie.
    for n in (min(n_rows, tokens_per_chunk(device)), D):
        torch.full((n, V), LARGE, dtype=dtype, device=device)

    def losses(hidden_nD: Tensor, output_VD: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(hidden_nD, output_VD), target_n, reduction="none")

    def loss(hidden_ND: Tensor, output_VD: Tensor) -> Tensor:
        return ChunkedCrossEntropy.apply(hidden_ND, output_VD, target_N)

    total, d_hidden_ND, d_output_VD = on_device(loss, [hidden_nD, output_VD], None, n_rows, device, dtype)
    losses_N, expected_ND, expected_VD = on_cpu(losses, [hidden_nD, output_VD], torch.ones(N_DISTINCT), n_rows)
    yield "the loss's values", total.view(1), losses_N.sum().view(1)
    yield "the loss's gradients of hidden units", d_hidden_ND, expected_ND
    # Rows of targets are thousands of times as large as the others.
    d_output_VD = d_output_VD.cpu()
    yield "the loss's gradients of its targets", d_output_VD[target_n], expected_VD[target_n]
    d_output_VD[target_n] = expected_VD[target_n] = 0
    yield "the loss's gradients of other ids", d_output_VD, expected_VD


def experts(shapes: Shapes, device: torch.device, dtype: torch.dtype) -> Results:
    """Up to four experts of the run's form, to which tokens go by number: no router's rounding sends one elsewhere.

    Of four with two each one has all tokens, one most, one a sixteenth and one none.
    """
    D, A, E, k, n_rows = shapes.d_model, shapes.d_hidden, shapes.n_experts, shapes.top_k, shapes.n_rows
    n_F = 2 * A if shapes.is_llama else A
    expert_nk = torch.tensor([[0, 1]] * N_DISTINCT)[:, :k].contiguous()
    expert_nk[0, 0] = E - 1
    numbers = torch.Generator().manual_seed(0)
    up, down = (draw(numbers, *shape, std=shape[1] ** -0.5) for shape in ((n_F, D), (D, A)))
    # One's is another's, moved on: to draw numbers takes longest.
    leaves = {"inputs": draw(numbers, N_DISTINCT, D), "gates": draw(numbers, N_DISTINCT, k)}
    for name, weight in (("up", up), ("down", down)):
        leaves[name] = torch.stack([weight.roll(7 * e, 1) for e in range(E)])
    if not shapes.is_llama:
        leaves |= {"up's bias": draw(numbers, E, n_F), "down's bias": draw(numbers, E, D)}
    dy_nD = draw(numbers, N_DISTINCT, D)

    def layer(x_ND, logits_Nk, w_up, w_down, b_up=None, b_down=None) -> Tensor:
        slots = assign_slots(tiled(expert_nk, n_rows).to(device), E, x_ND.dtype)
        return apply_experts(x_ND, logits_Nk, slots, (w_up, b_up), (w_down, b_down), True, shapes.is_llama)

    def plain_layer(x_nD, logits_nk, w_up, w_down, b_up=(None,) * E, b_down=(None,) * E) -> Tensor:
        gate_nk, y_nD = logits_nk.softmax(-1), torch.zeros_like(x_nD)
        for e in expert_nk.unique().tolist():
            token, slot = (expert_nk == e).nonzero(as_tuple=True)
            unit = activated(F.linear(x_nD[token], w_up[e], b_up[e]), shapes.is_llama)
            y_nD = y_nD.index_add(0, token, F.linear(unit, w_down[e], b_down[e]) * gate_nk[token, slot, None])
        return y_nD

    found = on_device(layer, [*leaves.values()], dy_nD, n_rows, device, dtype, n_of_tokens=2)
    expected = on_cpu(plain_layer, [*leaves.values()], dy_nD, n_rows, n_of_tokens=2)
    for name, *both in zip(("outputs", *(f"gradients of {name}" for name in leaves)), found, expected, strict=True):
        yield f"experts' {name}", *both


def draw(generator: torch.Generator, *shape: int, std: float = 1.0, mean: float = 0.0) -> Tensor:
    """Numbers that bf16 has, evenly spread, fp32 on the CPU."""
    numbers = torch.rand(shape, generator=generator).mul_(2 * 3**0.5 * std).add_(mean - 3**0.5 * std)
    return numbers.bfloat16().float()


def tiled(rows_n: Tensor, n: int) -> Tensor:
    """The rows, again and again, until there are `n`."""
    return rows_n.repeat(-(-n // len(rows_n)), *[1] * (rows_n.dim() - 1))[:n]


def surrounded(value: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The value on the device, between large numbers."""
    memory = torch.full((value.numel() + 2 * N_AROUND,), LARGE, dtype=dtype, device=device)
    memory[N_AROUND:-N_AROUND] = value.flatten().to(device)
    return memory[N_AROUND:-N_AROUND].view(value.shape)


def on_device(
    layer: Callable, leaves: list[Tensor], dy_n: Tensor | None, n_rows: int, device, dtype, n_of_tokens: int = 1
) -> list[Tensor]:
    """What a part of a model returns for `n_rows` tokens, and the gradients of its leaves.

    Args:
        leaves: first those that have a row for each token, `n_of_tokens`; the first of all is given in `dtype`.
        dy_n: gradient of what is returned, a row for each token; None if that is one number.
    """
    leaves = [tiled(leaf, n_rows) for leaf in leaves[:n_of_tokens]] + leaves[n_of_tokens:]
    dtypes = [dtype] + [torch.float32] * (len(leaves) - 1)
    leaves = [surrounded(leaf, device, dtype).requires_grad_() for leaf, dtype in zip(leaves, dtypes)]
    y = layer(*leaves)
    dy = None if dy_n is None else surrounded(tiled(dy_n, n_rows), device, y.dtype)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


def on_cpu(layer: Callable, leaves: list[Tensor], dy_n: Tensor, n_rows: int, n_of_tokens: int = 1) -> list[Tensor]:
    """The same by autograd in fp32, from the different tokens alone."""
    leaves = [leaf.requires_grad_() for leaf in leaves]
    times_n = tiled(torch.arange(N_DISTINCT), n_rows).bincount(minlength=N_DISTINCT)
    y = layer(*leaves)
    each_n, all_n = dy_n, dy_n * times_n.view(-1, *[1] * (dy_n.dim() - 1))
    of_tokens = torch.autograd.grad(y, leaves[:n_of_tokens], each_n, retain_graph=True)
    of_weights = torch.autograd.grad(y, leaves[n_of_tokens:], all_n)
    return [tiled(rows, n_rows) for rows in (y.detach(), *of_tokens)] + list(of_weights)


def worst_row(found: Tensor, expected: Tensor) -> float:
    """The largest |difference| of a row, over the root mean square of |expected| rows."""
    expected = expected.reshape(-1, expected.shape[-1])
    found = found.reshape(expected.shape)
    size = torch.linalg.vector_norm(expected) / len(expected) ** 0.5
    worst = torch.stack(
        [
            torch.linalg.vector_norm(some.cpu().float() - those, dim=-1).max()
            for some, those in zip(found.split(ROWS_AT_ONCE), expected.split(ROWS_AT_ONCE))
        ]
    ).max()
    return (worst / size.clamp(min=torch.finfo(torch.float32).tiny)).item()
