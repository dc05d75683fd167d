"""Attention of all models: heads, rotary positions, and key-value heads that several queries share.

The fused projection has the layout (key-value head, its queries|key|value, feature), so that what belongs together is
one run of rows. With a key-value head for each query that is GPT-NeoX's layout, (head, q|k|v, feature).

Shape letters: B batch, T time, D d_model, H heads, G key-value heads, Q queries of a key-value head (H = G × Q),
K head_dim, R features of a head that RoPE turns.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from config import ModelConfig
from models.layers import Linear


def rope_tables(config: ModelConfig, n_positions: int, device, dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines of RoPE (Su et al. 2021, eq. 34), each (T, R) for R = `config.rotary_dim`.

    Angles are computed in fp32 or better (never in bf16, which cannot count past 256).
    """
    exact = torch.promote_types(dtype, torch.float32)
    R = config.rotary_dim
    frequency_k = config.rope_base ** (-torch.arange(0, R, 2, device=device, dtype=exact) / R)
    if config.rope_scaling:
        frequency_k = scaled_frequencies(frequency_k, *config.rope_scaling)
    angle_TR = torch.outer(torch.arange(n_positions, device=device, dtype=exact), frequency_k).repeat(1, 2)
    return angle_TR.cos().to(dtype), angle_TR.sin().to(dtype)


def scaled_frequencies(frequency_k: Tensor, factor: float, low: float, high: float, context: float) -> Tensor:
    """Llama 3's frequencies for more positions than the `context` of pretraining (`rope_type` "llama3").

    A pair that turns less than `low` times within that context turns `factor` times more slowly, one that turns more than
    `high` times as before, and between the two the share of both goes over in a straight line.
    """
    turns_k = context * frequency_k / (2 * math.pi)
    kept_k = ((turns_k - low) / (high - low)).clamp(0, 1)
    return frequency_k * (kept_k + (1 - kept_k) / factor)


def apply_rope(x_BHTK: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
    """Turns the feature pairs (i, i + R/2) by the angle of their position; features from R on stay."""
    R, K = cos_TR.shape[-1], x_BHTK.shape[-1]
    if R < K:
        x_BHTR, rest = x_BHTK.split((R, K - R), dim=-1)
        return torch.cat((apply_rope(x_BHTR, cos_TR, sin_TR), rest), dim=-1)
    first, second = x_BHTK.chunk(2, dim=-1)
    return x_BHTK * cos_TR + torch.cat((-second, first), dim=-1) * sin_TR


def causal_attention(q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
    """Every token sees itself and what comes before it, (B, H, T, K)."""
    return F.scaled_dot_product_attention(*for_all_heads(q_BHTK, k_BGTK, v_BGTK), is_causal=True)


def for_all_heads(q_BHTK: Tensor, *shared: Tensor) -> tuple[Tensor, ...]:
    """Queries as they are, and each key-value head once for every query of its own.

    Not `enable_gqa`, for which CUDA has no kernel in fp32 but the one that keeps all scores.
    """
    n_queries = q_BHTK.shape[1] // shared[0].shape[1]
    return q_BHTK, *(x if n_queries == 1 else x.repeat_interleave(n_queries, 1) for x in shared)


class Attention(nn.Module):
    """Causal multi-head self-attention; (B, T, D) → (B, T, D)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.qkv = Linear(config.d_model, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, not config.is_llama)
        self.out = Linear(config.d_model, config.d_model, not config.is_llama)

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], attend: Callable = causal_attention) -> Tensor:
        B, T, D = x_BTD.shape
        q_BHTK, k_BGTK, v_BGTK = self.split_heads(self.qkv(x_BTD))
        q_BHTK, k_BGTK = apply_rope(q_BHTK, *rope), apply_rope(k_BGTK, *rope)
        y_BHTK = attend(q_BHTK, k_BGTK, v_BGTK)
        return self.out(y_BHTK.transpose(1, 2).reshape(B, T, D))

    def split_heads(self, qkv_BTF: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, H, T, K), keys and values (B, G, T, K), out of the fused (B, T, (H + 2G) K)."""
        Q = self.n_heads // self.n_kv_heads
        qkv_BGPTK = qkv_BTF.unflatten(-1, (self.n_kv_heads, Q + 2, self.head_dim)).permute(0, 2, 3, 1, 4)
        return qkv_BGPTK[:, :, :Q].flatten(1, 2), qkv_BGPTK[:, :, Q], qkv_BGPTK[:, :, Q + 1]
