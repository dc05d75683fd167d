"""The decoder-only transformer of all three phases, dense or mixture of experts.

    tokens ─ embedding ─ [ x + attention(norm(x)) ; x + mlp(norm(x)) ] × n_layers ─ norm ─ embeddingᵀ

Feature                  Choice
-----------------------  -----------------------------------------------------------------
normalisation            pre-LayerNorm with bias (before attention, before the MLP, at the end)
positions                RoPE, rotate-half, base 10,000, over the whole head (Su et al. 2021)
attention                causal, all heads full, one fused projection with bias
MLP                      d → 4d → d with GELU (exact, by erf) and biases, or experts of that shape
embeddings               tied: the output matrix is the input embedding
initialisation           N(0, 0.02); projections into the residual N(0, 0.02 / √(2 · n_layers))

The dense model is GPT-NeoX (Black et al. 2022) with sequential residual and full rotary. Imported models may
have NeoX's other choices: both branches of a block on one residual, rotary over a leading share of the
head, an output matrix of its own. The fused projection has NeoX's layout, (head, q|k|v, feature), so that a
head is one run of rows.

Shape letters: B batch, T time, D d_model, H heads, K head_dim, V vocabulary,
R features of a head that RoPE turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from models.kv_cache import KVCache
from models.moe import MoE, Routing
from models.products import linear

INIT_STD = 0.02


class LayerNorm(nn.LayerNorm):
    """Normalises in the weights' dtype, then hands on `output_dtype`.

    This is where a precision enters the network: what follows a norm computes in the dtype
    that the norm gives it, while the residual stream keeps the weights' dtype.
    """

    output_dtype: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        return y if self.output_dtype is None else y.to(self.output_dtype)


class Linear(nn.Linear):
    """A linear layer that computes in its input's dtype, whatever dtype its weights have."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


def rope_tables(n_positions: int, rotary_dim: int, base: float, device, dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021, eq. 34), each (T, R) for R = `rotary_dim`.

    Angles are computed in fp32 or better (never in bf16, which cannot count past 256).
    """
    exact = torch.promote_types(dtype, torch.float32)
    frequency_k = base ** (-torch.arange(0, rotary_dim, 2, device=device, dtype=exact) / rotary_dim)
    angle_TR = torch.outer(torch.arange(n_positions, device=device, dtype=exact), frequency_k).repeat(1, 2)
    return angle_TR.cos().to(dtype), angle_TR.sin().to(dtype)


def apply_rope(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turns the feature pairs (i, i + R/2) by the angle of their position; features from R on stay."""
    R, K = cos_TR.shape[-1], x_BHTK.shape[-1]
    if R < K:
        x_BHTR, rest = x_BHTK.split((R, K - R), dim=-1)
        return torch.cat((apply_rope(x_BHTR, cos_TR, sin_TR), rest), dim=-1)
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TR + torch.cat((-second, first), dim=-1) * sin_TR


def causal_attention(q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor) -> Tensor:
    """Every token sees itself and what comes before it, (B, H, T, K)."""
    return F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, is_causal=True)


class Attention(nn.Module):
    """Causal multi-head self-attention; (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads = config.n_heads
        self.head_dim = config.head_dim
        self.qkv = Linear(config.d_model, 3 * config.d_model)
        self.out = Linear(config.d_model, config.d_model)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Callable = causal_attention) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BHTK, v_BHTK = self.split_heads(self.qkv(x_BTD))
        q_BHTK, k_BHTK = apply_rope(q_BHTK, *rope), apply_rope(k_BHTK, *rope)
        y_BHTK = attend(q_BHTK, k_BHTK, v_BHTK)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))

    def split_heads(self, qkv_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each (B, H, T, K), out of the fused (B, T, 3D)."""
        B, T, _ = qkv_BTF.shape
        return qkv_BTF.view(B, T, self.n_heads, 3, self.head_dim).permute(3, 0, 2, 1, 4).unbind(0)


class MLP(nn.Module):
    """d → 4d → d with GELU; (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.up = Linear(config.d_model, config.d_hidden)
        self.down = Linear(config.d_hidden, config.d_model)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x_BTD)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `mlp` is an `MLP` or a `MoE`.

    With a parallel residual x + attention(norm(x)) + mlp(norm(x)), where both norms read the block's input.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.is_parallel = config.parallel_residual
        self.attention_norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.attention = Attention(config)
        self.mlp_norm = LayerNorm(config.d_model, eps=config.norm_eps)
        self.mlp = MoE(config) if config.is_moe else MLP(config)

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Callable = causal_attention
    ) -> tuple[Tensor, Routing | None]:
        block_input_BTD = x_BTD
        x_BTD = x_BTD + self.attention(self.attention_norm(x_BTD), rope, attend)
        routing = None
        y_BTD = self.mlp(self.mlp_norm(block_input_BTD if self.is_parallel else x_BTD))
        if isinstance(self.mlp, MoE):
            y_BTD, routing = y_BTD
        return x_BTD + y_BTD, routing


class Transformer(nn.Module):
    """A language model; `model(tokens)` maps int64 (B, T) to logits (B, T, V).

    Its weights are uninitialised on construction: `build_dense_model`, `build_moe_model`,
    `load_model`, upcycling and growth each fill them.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.final_norm = LayerNorm(config.d_model, eps=config.norm_eps)
        if not config.tied:
            self.unembedding = nn.Linear(config.d_model, config.vocab_size, bias=False)

    @classmethod
    def empty(cls, config: ModelConfig, device="cpu", dtype=torch.float32) -> Transformer:
        """A model with allocated and unfilled weights: large models are never initialised in vain."""
        with torch.device("meta"):
            model = cls(config).to(dtype)
        return model.to_empty(device=device)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTD, _ = self.hidden(tokens_BT)
        return self.unembed(hidden_BTD)

    def hidden(self, tokens_BT: Tensor, cache: KVCache | None = None) -> tuple[Tensor, list[Routing]]:
        """The normalised last residual (B, T, D), and the routing of each MoE layer.

        With a `cache` the tokens go on where its rows end, and are added to it.

        Raises:
            ValueError: more positions than `context_length`, or than the cache has room for.
        """
        x_BTD = self.embedding(tokens_BT)
        rope = self.rope(tokens_BT.shape[1]) if cache is None else cache.extend(tokens_BT.shape[1])
        routings = []
        for layer, block in enumerate(self.blocks):
            attend = causal_attention if cache is None else partial(cache.attend, layer)
            x_BTD, routing = block(x_BTD, rope, attend)
            if routing is not None:
                routings.append(routing)
        return self.final_norm(x_BTD), routings

    def rope(self, n_positions: int) -> tuple[Tensor, Tensor]:
        """Tables of the first positions. Raises ValueError where they are more than `context_length`."""
        if n_positions > self.config.context_length:
            raise ValueError(f"{n_positions} tokens, but the context length is {self.config.context_length}")
        weight = self.embedding.weight
        return rope_tables(
            n_positions,
            self.config.rotary_dim,
            self.config.rope_base,
            weight.device,
            self.compute_dtype or weight.dtype,
        )

    def new_cache(self, batch_size: int, n_positions: int) -> KVCache:
        """An empty cache for so many positions of each row, in the present compute dtype; for use under `no_grad`."""
        return KVCache(self.config, batch_size, self.rope(n_positions))

    def unembed(self, hidden_D: Tensor) -> Tensor:
        """Logits (…, V) of normalised residuals (…, D)."""
        return F.linear(hidden_D, self.output_matrix.to(hidden_D.dtype))

    @property
    def output_matrix(self) -> nn.Parameter:
        """(V, D): the embedding, or the unembedding of a model whose two are not tied."""
        return self.embedding.weight if self.config.tied else self.unembedding.weight

    @property
    def compute_dtype(self) -> torch.dtype | None:
        """The dtype of matrix products and attention; None means that of the weights."""
        return self.final_norm.output_dtype

    @compute_dtype.setter
    def compute_dtype(self, dtype: torch.dtype | None) -> None:
        for module in self.modules():
            if isinstance(module, LayerNorm):
                module.output_dtype = dtype

    def rest(self) -> None:
        """Where ranks share the model, splits up again what a forward pass without a backward pass has left whole."""
        if hasattr(self, "reshard"):  # FSDP2's, see models/shards.py
            self.reshard()

    def keep_hidden(self, keeps: bool) -> None:
        """Whether experts keep their hidden units for the backward pass, or compute them again."""
        for module in self.modules():
            if isinstance(module, MoE):
                module.keeps_hidden = keeps

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> Transformer:
        """Fills all weights as the table above says; draws on the CPU, so alike on every device."""
        for name, parameter in self.named_parameters():
            initialise_parameter(name, parameter, self.config.n_layers, generator)
        return self


RESIDUAL_WRITERS = ("attention.out.weight", "mlp.down.weight")


def initialise_parameter(name: str, parameter: Tensor, n_layers: int, generator: torch.Generator) -> None:
    """Fills one parameter, in place, as a new model of `n_layers` has it."""
    if name.endswith("norm.weight"):
        parameter.fill_(1.0)
    elif name.endswith("bias"):
        parameter.zero_()
    else:
        std = INIT_STD / math.sqrt(2 * n_layers) if name.endswith(RESIDUAL_WRITERS) else INIT_STD
        values = torch.empty(parameter.shape, dtype=parameter.dtype, device=generator.device)
        parameter.copy_(values.normal_(0.0, std, generator=generator))


@contextmanager
def exact_arithmetic(*models: Transformer):
    """Inside, the models compute in their weights' own dtype: measurements before and after
    a boundary must not see the rounding of a lower training precision."""
    before = [model.compute_dtype for model in models]
    for model in models:
        model.compute_dtype = None
    try:
        yield
    finally:
        for model, dtype in zip(models, before):
            model.compute_dtype = dtype
            model.rest()
