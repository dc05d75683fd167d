"""Orthogonalisation of matrices by Newton-Schulz iterations on their Gram matrices.

A wide X = U S Vᵀ becomes f(S) in place of S, with f an odd polynomial that is about 1. Each step is

    X ← (a + b G + c G²) X,    G = X Xᵀ

of which only the last product has to be with X itself: G ← P G P follows with P = a + b G + c G², and Q = … P₂ P₁
gathers what X is to be multiplied by (Gram Newton-Schulz, Dao-AILab 2026). Everything between is n × n, and symmetric,
because all of it are polynomials of one matrix: half of each product is a copy of the other half.

Shape letters: N matrices of a stack, O rows (out), I columns (in).
"""

from __future__ import annotations

import torch
from torch import Tensor

# a, b, c of each step: five of Jordan's quintic (2024) bring singular values of 0.002 to 1 of the root of the sum of all
# squares to about 0.7 to 1.2, and the largest, which seldom is below half of it, to 0.7. More exact steps that do not damp
# the largest learn worse, docs/BENCHMARKS.md.
STEPS = ((3.4445, -4.7750, 2.0315),) * 5
# In bf16 small eigenvalues of G drown in the rounding of the large ones: after three steps it is computed anew.
STEPS_A_GRAM = {torch.float64: 5, torch.float32: 5, torch.bfloat16: 3}
# As in torch. An expert without tokens comes to rest as its momentum fades below this.
SMALLEST_NORM = 1e-7
# Rows of a symmetric product computed at once. Smaller products are slower by more than what is saved.
ROWS = 256


def is_wide(stack_NOI: Tensor) -> bool:
    return stack_NOI.shape[-2] <= stack_NOI.shape[-1]


def orthogonalise(stack_NOI: Tensor) -> Tensor:
    """About U Vᵀ of each wide matrix U S Vᵀ, (n, out, in) in fp64, fp32 or bf16; a vanishing matrix stays one."""
    norm_N11 = torch.linalg.vector_norm(stack_NOI, dim=(-2, -1), keepdim=True)
    x_NOI = stack_NOI / norm_N11.clamp(min=SMALLEST_NORM)
    at_once = STEPS_A_GRAM[stack_NOI.dtype]
    for first in range(0, len(STEPS), at_once):
        gram_NOO = symmetric_product(x_NOI, x_NOI.mT)
        x_NOI = torch.bmm(gathered(gram_NOO, STEPS[first : first + at_once]), x_NOI)
    return x_NOI


def gathered(gram_NOO: Tensor, steps: tuple[tuple[float, float, float], ...]) -> Tensor:
    """Q, the product of the steps' polynomials: Q X is what they make of X, given its Gram matrix."""
    q_NOO = None
    for number, (a, b, c) in enumerate(steps, start=1):
        p_NOO = symmetric_product(gram_NOO, gram_NOO).mul_(c).add_(gram_NOO, alpha=b)
        p_NOO.diagonal(dim1=-2, dim2=-1).add_(a)
        q_NOO = p_NOO if q_NOO is None else symmetric_product(p_NOO, q_NOO)
        if number < len(steps):
            gram_NOO = symmetric_product(symmetric_product(p_NOO, gram_NOO), p_NOO)
    return q_NOO


def symmetric_product(left_NOI: Tensor, right_NIO: Tensor) -> Tensor:
    """left @ right where that is known to be symmetric: the blocks above the diagonal are copied from below."""
    O = left_NOI.shape[-2]
    if O <= ROWS:
        return torch.bmm(left_NOI, right_NIO)
    product_NOO = left_NOI.new_empty(len(left_NOI), O, O)
    for start in range(0, O, ROWS):
        end = min(start + ROWS, O)
        rows = torch.bmm(left_NOI[:, start:end], right_NIO[..., :end])
        product_NOO[:, start:end, :end] = rows
        product_NOO[:, :start, start:end] = rows[..., :start].mT
    return product_NOO


def orthogonalisation_flops(rows: int, columns: int, dtype: torch.dtype) -> float:
    """FLOPs of the products for one matrix; of a tall one as for its transpose."""
    n, m = sorted((rows, columns))
    ends = [min(start + ROWS, n) for start in range(0, n, ROWS)]
    computed = sum((end - start) * end for start, end in zip(range(0, n, ROWS), ends))  # entries of a symmetric product
    at_once = STEPS_A_GRAM[dtype]
    n_grams = -(-len(STEPS) // at_once)
    # Of each step G² and P G P, and its share of Q; a Gram's first P is Q, and after its last step nobody needs P G P.
    small = 4 * len(STEPS) - 3 * n_grams
    return 2 * m * computed * n_grams + 2 * n * computed * small + 2 * n * n * m * n_grams
