"""Matrix products in shapes that every device computes right.

On M1 and M2 a product of matrices sums what lies behind its operands as well, where it has 32,767 terms or more for
each number and at least 16 rows and columns: silently, and up to 30 % off. In torch 2.13 that is any product; later
ones still compute stacks of matrices so (pytorch #193487 and #195163). Nothing tells which chip it is: on MPS no sum
is ever as long.

Shape letters: N rows, K terms of a sum, M columns.
"""

from __future__ import annotations

import sys
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

MPS_LONGEST_SUM = 32_766


def longest_sum(device: torch.device) -> int:
    """How many terms one sum of a matrix product may have on the device."""
    return MPS_LONGEST_SUM if device.type == "mps" else sys.maxsize


def long_product(a_NK: Tensor, b_KM: Tensor) -> Tensor:
    """a @ b, (N, M), as a sum over even slices of K where that is too long for one sum."""
    n_slices = -(-a_NK.shape[1] // longest_sum(a_NK.device)) or 1
    size = -(-a_NK.shape[1] // n_slices) or 1
    return reduce(torch.add, (a @ b for a, b in zip(a_NK.split(size, dim=1), b_KM.split(size))))


def product_into(part_NM: Tensor, a_NK: Tensor, b_KM: Tensor) -> None:
    """Fills a part of a larger tensor, of any dtype, with a @ b.

    On macOS 14 what a product is told to write there never arrives (pytorch #193385); newer ones take a slow kernel
    for it. Elsewhere a product of its own, and a copy of it, would cost a sixth more time.
    """
    is_one_product = part_NM.dtype == a_NK.dtype and a_NK.shape[1] <= longest_sum(a_NK.device)
    if is_one_product and part_NM.device.type != "mps":
        torch.mm(a_NK, b_KM, out=part_NM)
    else:
        part_NM.copy_(long_product(a_NK, b_KM))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear`, (…, in) → (…, out), in parts where its rows are too many: the weight's gradient sums over them."""
    longest = longest_sum(x.device)
    if x.shape[:-1].numel() <= longest:
        return F.linear(x, weight, bias)
    parts = x.flatten(0, -2).split(longest)
    return torch.cat([F.linear(rows, weight, bias) for rows in parts]).unflatten(0, x.shape[:-1])
