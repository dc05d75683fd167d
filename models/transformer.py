"""The decoder-only transformer of all three phases, dense or mixture of experts.

    tokens ─ embedding ─ [ x + attention(norm(x)) ; x + mlp(norm(x)) ] × n_layers ─ norm ─ embeddingᵀ

Feature                  Choice
-----------------------  -----------------------------------------------------------------
architecture             neox: LayerNorm, GELU, biases; llama: RMSNorm, SwiGLU, no biases (models/layers.py)
normalisation            before attention, before the MLP, at the end
positions                RoPE, rotate-half, base 10,000, over the whole head (Su et al. 2021)
attention                causal, all heads full, one fused projection (models/attention.py)
MLP                      d → d_hidden → d, or experts of that shape
embeddings               tied: the output matrix is the input embedding
initialisation           N(0, 0.02); projections into the residual N(0, 0.02 / √(2 · n_layers))

The dense models are GPT-NeoX (Black et al. 2022) with sequential residual and full rotary, and Llama (Touvron et al.
2023). Imported models may have their families' other choices: both branches of a block on one residual, rotary over a
leading share of the head, key-value heads that queries share, scaled RoPE, an output matrix of its own.

Shape letters: B batch, T time, D d_model, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from config import ModelConfig
from models.attention import Attention, causal_attention, rope_tables
from models.kv_cache import KVCache
from models.layers import MLP, Normalises, norm
from models.lean import layers_in_parts
from models.moe import MoE, Routing

INIT_STD = 0.02


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); `mlp` is an `MLP` or a `MoE`.

    With a parallel residual x + attention(norm(x)) + mlp(norm(x)), where both norms read the block's input.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.is_parallel = config.parallel_residual
        self.attention_norm = norm(config)
        self.attention = Attention(config)
        self.mlp_norm = norm(config)
        self.mlp = MoE(config) if config.is_moe else MLP(config)
        self.keeps_attention = True  # for the backward pass; otherwise it is computed again

    def forward(
        self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Callable = causal_attention
    ) -> tuple[Tensor, Routing | None]:
        block_input_BTD = x_BTD
        x_BTD = x_BTD + self.attended(x_BTD, rope, attend)
        routing = None
        y_BTD = self.mlp(self.mlp_norm(block_input_BTD if self.is_parallel else x_BTD))
        if isinstance(self.mlp, MoE):
            y_BTD, routing = y_BTD
        return x_BTD + y_BTD, routing

    def attended(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Callable) -> Tensor:
        """What attention adds to the residual."""

        def add(x_BTD: Tensor) -> Tensor:
            return self.attention(self.attention_norm(x_BTD), rope, attend)

        if self.keeps_attention or not torch.is_grad_enabled():
            return add(x_BTD)
        return checkpoint(add, x_BTD, use_reentrant=False, preserve_rng_state=False)


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
        self.final_norm = norm(config)
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
        return rope_tables(self.config, n_positions, weight.device, self.compute_dtype or weight.dtype)

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
            if isinstance(module, Normalises):
                module.output_dtype = dtype

    @property
    def reads_low(self) -> bool:
        """Whether products read both parts of weights that are kept in two, see models/lean.py."""
        return self.blocks[0].attention.qkv.reads_low

    @reads_low.setter
    def reads_low(self, reads: bool) -> None:
        for layer in layers_in_parts(self):
            layer.reads_low = reads

    def rest(self) -> None:
        """Where ranks share the model, splits up again what a forward pass without a backward pass has left whole."""
        if hasattr(self, "reshard"):  # FSDP2's, see models/shards.py
            self.reshard()

    def recover(self) -> None:
        """Where ranks share the model, makes it fit for its next pass after one that broke off."""
        getattr(self, "reset_iter_state", self.rest)()  # FSDP2's, of torch 2.13

    def keep_hidden(self, keeps: bool) -> None:
        """Whether experts and attention keep what they compute on their way for the backward pass, or compute it again."""
        for block in self.blocks:
            block.keeps_attention = keeps
            if isinstance(block.mlp, MoE):
                block.mlp.keeps_hidden = keeps

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
    """Inside, the models compute in their weights' own dtype, with all parts of them: measurements before and after
    a boundary must not see the rounding of a lower training precision."""
    before = [(model.compute_dtype, model.reads_low) for model in models]
    for model in models:
        model.compute_dtype, model.reads_low = None, True
    try:
        yield
    finally:
        for model, (dtype, reads_low) in zip(models, before):
            model.compute_dtype, model.reads_low = dtype, reads_low
            model.rest()
