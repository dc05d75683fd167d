"""What attention remembers of the tokens that a model has read, so that the next token costs one token's work.

Keys are kept after their rotation: RoPE turns a key by its own position alone, so it never changes again.
The rows of a batch may have different lengths. A new token takes its row's next position, and sees that row
up to itself; what lies behind it (padding, or what was cut) is hidden from it and will be written over.

Shape letters: B batch, T new tokens, C positions that there is room for, S positions in use, H heads, G key-value heads,
K head_dim.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from config import ModelConfig
from models.attention import for_all_heads


class KVCache:
    """Keys and values of every layer, made by `Transformer.new_cache`; `lengths` says how many tokens each row holds."""

    def __init__(self, config: ModelConfig, batch_size: int, rope: tuple[Tensor, Tensor]):
        """`rope`: tables (C, features turned), of the cache's device and dtype."""
        self.rope = rope
        self.lengths = [0] * batch_size
        shape = (config.n_layers, 2, batch_size, len(rope[0]), config.n_kv_heads, config.head_dim)
        # Zeros, because what is hidden is still multiplied by its weight of 0, and empty memory may hold NaN.
        self.kept_L2BCGK = rope[0].new_zeros(shape)

    def extend(self, n_tokens: int) -> tuple[Tensor, Tensor]:
        """Makes room for as many new tokens in every row; the RoPE tables of their positions, (B, 1, T, …).

        Raises:
            ValueError: there is no room.
        """
        capacity, longest = len(self.rope[0]), max(self.lengths) + n_tokens
        if longest > capacity:
            raise ValueError(f"{longest} tokens, but the cache has room for {capacity}")
        device = self.kept_L2BCGK.device
        start_B1 = torch.tensor(self.lengths, device=device).unsqueeze(1)
        self.position_BT = start_B1 + torch.arange(n_tokens, device=device)
        self.row_B1 = torch.arange(len(self.lengths), device=device).unsqueeze(1)
        self.n_used = longest
        # Two usual cases need no mask: the first tokens of all, and one more token for rows of one length.
        self.is_first = not any(self.lengths)
        self.mask_B1TS = None
        if not self.is_first and (n_tokens > 1 or len(set(self.lengths)) > 1):
            self.mask_B1TS = (torch.arange(longest, device=device) <= self.position_BT.unsqueeze(-1)).unsqueeze(1)
        self.lengths = [length + n_tokens for length in self.lengths]
        cos, sin = (table[self.position_BT].unsqueeze(1) for table in self.rope)
        return cos, sin

    def attend(self, layer: int, q_BHTK: Tensor, k_BGTK: Tensor, v_BGTK: Tensor) -> Tensor:
        """Keeps the new keys and values of a layer, and lets the new queries see all that are theirs; (B, H, T, K)."""
        seen = []
        for kept_BCGK, new_BGTK in zip(self.kept_L2BCGK[layer], (k_BGTK, v_BGTK)):
            kept_BCGK[self.row_B1, self.position_BT] = new_BGTK.transpose(1, 2)
            seen.append(kept_BCGK[:, : self.n_used].transpose(1, 2))
        return F.scaled_dot_product_attention(
            *for_all_heads(q_BHTK, *seen), attn_mask=self.mask_B1TS, is_causal=self.is_first
        )

    def cut(self, lengths: list[int]) -> None:
        """Forgets what each row holds beyond its length: the padding behind shorter prompts."""
        self.lengths = list(lengths)

    def keep_rows(self, rows: list[int]) -> None:
        """Forgets all other rows."""
        self.lengths = [self.lengths[row] for row in rows]
        self.kept_L2BCGK = self.kept_L2BCGK[:, :, rows]
