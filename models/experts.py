"""The experts of an MoE layer: each token through its own, summed with its gates.

    y = Σₖ gateₖ · (activated(x W_upᵀ + b_up) W_downᵀ + b_down)      weights of the token's k-th expert

Rows are sorted by expert. Where `grouped_mm` has a kernel that pays, one call multiplies all
experts' rows; elsewhere one expert follows another, which on a CPU leaves its hidden units in the
cache between two products.

`activated` is the GELU or SwiGLU of models/layers.py; of the latter W_up has both matrices, gate's rows first.

It is an autograd function of its own because autograd would keep the gathered rows, both sides of
GELU and the experts' outputs twice, 11 d_model a row, where the outputs, d_model, are enough. They serve
the gradient of the gates: the softmax that made those asks for gate · dgate = ⟨gate · dy, y⟩.

Shape letters: N tokens, k experts of a token, R rows (N × k, or a few more: see `row_multiple`), E experts,
D d_model, F rows of W_up (hidden units, with SwiGLU twice as many), A hidden units, I in, O out.
Stacked weights are (E, out, in).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.layers import activated, activated_backward
from models.lean import weight_to_compute_with
from models.products import product_into

# What each expert's share of rows is rounded up to, by rows of token 0 with gate 0.
ROW_MULTIPLE = 32
# Of CUDA cards, those for which torch has a kernel of grouped_mm.
GROUPED_MM_CAPABILITIES = (9, 10)


class Slots(NamedTuple):
    """Which rows belong to which token, and which to which expert."""

    token_R: Tensor  # int64; 0 for rows that only fill
    row_Nk: Tensor  # int64, the row of a token's k-th expert
    slots_per_expert_E: Tensor  # int64, without the rows that only fill
    ends_E: Tensor  # int64, one past each expert's last row


def assign_slots(expert_Nk: Tensor, n_experts: int, dtype: torch.dtype) -> Slots:
    """Sorts the tokens' choices by expert; `expert_Nk` is int64 (N, k), a token's experts all different.

    Args:
        dtype: in which the experts will be computed.
    """
    expert_S, order_S = expert_Nk.flatten().sort(stable=True)
    experts_E = torch.arange(n_experts, device=expert_S.device)
    ends_E = torch.searchsorted(expert_S, experts_E, right=True)
    slots_E = ends_E.diff(prepend=ends_E.new_zeros(1))
    token_S = order_S // expert_Nk.shape[1]
    row_S = torch.arange(len(order_S), device=order_S.device)
    multiple = row_multiple(order_S.device, dtype)
    if multiple > 1:
        fill_E = -slots_E % multiple
        row_S = row_S + (fill_E.cumsum(0) - fill_E)[expert_S]
        ends_E = ends_E + fill_E.cumsum(0)
        # As many rows as there can be, whatever the shares: nobody waits to learn how many, and the last go unused.
        n_rows = len(order_S) + n_experts * (multiple - 1)
        token_S = token_S.new_zeros(n_rows).scatter_(0, row_S, token_S)
    row_Nk = torch.empty_like(order_S).scatter_(0, order_S, row_S).view_as(expert_Nk)
    return Slots(token_S, row_Nk, slots_E, ends_E)


def row_multiple(device: torch.device, dtype: torch.dtype) -> int:
    """More than 1 where something is made, and kept, for each number of rows that a product meets.

    In bf16 on a CPU it is oneDNN's code, which takes as long to make as the product itself takes; on MPS it is a graph
    and buffers of each size (pytorch #188045).
    """
    return ROW_MULTIPLE if device.type == "mps" or (device.type == "cpu" and dtype == torch.bfloat16) else 1


class RowGroup(NamedTuple):
    """Rows that are computed together: those of one expert, or those of all, with where each ends."""

    rows: slice
    expert: int | slice
    ends_E: Tensor | None  # int32

    @property
    def rows_per_expert_E(self) -> Tensor:
        return self.ends_E.diff(prepend=self.ends_E.new_zeros(1))


def row_groups(slots: Slots, is_grouped: bool) -> list[RowGroup]:
    """Without experts that no row goes to: for a single token all others' weights would be cast for nothing.

    Experts one after another are what the host waits for a device for, once a layer and step.
    """
    if is_grouped:
        return [RowGroup(slice(None), slice(None), slots.ends_E.to(torch.int32))]
    ends = slots.ends_E.tolist()
    starts = [0, *ends]
    return [
        RowGroup(slice(start, end), expert, None)
        for expert, (start, end) in enumerate(zip(starts, ends))
        if start < end
    ]


def apply_experts(
    x_ND: Tensor,
    chosen_logits_Nk: Tensor,
    slots: Slots,
    up: tuple[Tensor, Tensor | None],
    down: tuple[Tensor, Tensor | None],
    keeps_hidden: bool = True,
    is_gated: bool = False,
    lows: tuple[Tensor | None, Tensor | None] = (None, None),
) -> Tensor:
    """The gated sum of every token's experts, (N, D) → (N, D); differentiable once.

    Args:
        chosen_logits_Nk: router logits of each token's experts; the gates are their softmax.
        up, down: stacked weights (E, F, D), or (E, gate|up, A, D), and (E, D, A), and biases (E, F) and (E, D) or None, of
            any dtype; products are computed in that of x.
        keeps_hidden: keeps what `up` gave for the backward pass; otherwise it is computed again, from
            the same slots: nothing is routed twice.
        is_gated: SwiGLU in place of GELU.
        lows: what is to be joined to the weights of `up` and `down`, shaped like them (models/lean.py).
    """
    (w_up, b_up), (w_down, b_down) = up, down
    lows = tuple(low if low is None else low.flatten(1, -2) for low in lows)
    return Experts.apply(
        x_ND, chosen_logits_Nk, w_up.flatten(1, -2), b_up, w_down, b_down, lows, slots, keeps_hidden, is_gated
    )


class Experts(torch.autograd.Function):
    """`apply_experts`."""

    @staticmethod
    def forward(ctx, x_ND, logits_Nk, w_up, b_up, w_down, b_down, lows, slots, keeps_hidden, is_gated):
        gate_Nk = logits_Nk.softmax(-1)
        y_RD = x_ND.new_empty(len(slots.token_R), x_ND.shape[1])
        kept, ctx.is_gated, ctx.lows = [], is_gated, lows
        up, down = (w_up, lows[0]), (w_down, lows[1])
        ctx.is_grouped = grouped_mm_serves(x_ND, w_down)
        ctx.groups = row_groups(slots, ctx.is_grouped)
        for group in ctx.groups:
            hidden_RF = expert_linear(x_ND.index_select(0, slots.token_R[group.rows]), up, b_up, group)
            unit_RA = activated(hidden_RF, is_gated)
            y_RD[group.rows] = expert_linear(unit_RA, down, b_down, group)
            if keeps_hidden:
                kept += [hidden_RF, unit_RA]
        ctx.save_for_backward(x_ND, y_RD, gate_Nk, w_up, b_up, w_down, b_down, *slots, *kept)
        return gated_sum(y_RD, gate_Nk, slots.row_Nk)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy_ND):
        x_ND, y_RD, gate_Nk, w_up, b_up, w_down, b_down, *rest = ctx.saved_tensors
        slots, kept = Slots(*rest[:4]), rest[4:]
        up, down = (w_up, ctx.lows[0]), (w_down, ctx.lows[1])
        gate_R = gate_Nk.new_zeros(len(slots.token_R)).scatter_(0, slots.row_Nk.flatten(), gate_Nk.flatten())
        dx_RD = torch.empty_like(y_RD)
        gate_dgate_R = torch.empty_like(gate_R)
        wanted = zip((w_up, b_up, w_down, b_down), ctx.needs_input_grad[2:6])
        dw_up, db_up, dw_down, db_down = (
            torch.empty_like(weight) if is_wanted else None for weight, is_wanted in wanted
        )
        if not ctx.is_grouped:
            for expert in set(range(len(w_up))) - {group.expert for group in ctx.groups}:
                for gradient in (dw_up, db_up, dw_down, db_down):
                    if gradient is not None:
                        gradient[expert].zero_()
        for i, group in enumerate(ctx.groups):
            token_R = slots.token_R[group.rows]
            x_RD = x_ND.index_select(0, token_R)
            if kept:
                hidden_RF, unit_RA = kept[2 * i : 2 * i + 2]
            else:
                hidden_RF = expert_linear(x_RD, up, b_up, group)
                unit_RA = activated(hidden_RF, ctx.is_gated)
            g_RD = dy_ND.index_select(0, token_R) * gate_R[group.rows, None].to(dy_ND.dtype)
            d_unit_RA = product(g_RD, down, group)
            gate_dgate_R[group.rows] = torch.linalg.vecdot(g_RD, y_RD[group.rows])
            weight_gradients(dw_down, db_down, g_RD, unit_RA, group)
            d_hidden_RF = activated_backward(d_unit_RA, hidden_RF, ctx.is_gated)
            weight_gradients(dw_up, db_up, d_hidden_RF, x_RD, group)
            dx_RD[group.rows] = product(d_hidden_RF, up, group)
        dx_ND = dx_RD.index_select(0, slots.row_Nk.flatten()).unflatten(0, gate_Nk.shape).sum(1)
        gate_dgate_Nk = gate_dgate_R[slots.row_Nk]
        d_logits_Nk = gate_dgate_Nk - gate_Nk * gate_dgate_Nk.sum(-1, keepdim=True)
        return dx_ND, d_logits_Nk, dw_up, db_up, dw_down, db_down, None, None, None, None


def gated_sum(y_RD: Tensor, gate_Nk: Tensor, row_Nk: Tensor) -> Tensor:
    """Brings rows home and adds them, (R, D) → (N, D): no atomics, so the same bits every time."""
    y_NkD = y_RD.index_select(0, row_Nk.flatten()).unflatten(0, row_Nk.shape)
    return (y_NkD * gate_Nk.unsqueeze(-1).to(y_RD.dtype)).sum(1)


def product(x_RO: Tensor, stack: tuple[Tensor, Tensor | None], group: RowGroup) -> Tensor:
    """Each row times the matrix of its expert, (R, out) → (R, in)."""
    weight = weights_of(group, stack, x_RO.dtype)
    return x_RO @ weight if group.ends_E is None else F.grouped_mm(x_RO, weight, offs=group.ends_E)


def weights_of(group: RowGroup, stack: tuple[Tensor, Tensor | None], dtype: torch.dtype) -> Tensor:
    """The matrix of a group's expert, or those of all; `stack` is (E, out, in), with what is to be joined to it."""
    weight_EOI, low_EOI = stack
    return weight_to_compute_with(weight_EOI[group.expert], None if low_EOI is None else low_EOI[group.expert], dtype)


def expert_linear(x_RI: Tensor, stack: tuple[Tensor, Tensor | None], bias_EO: Tensor | None, group: RowGroup) -> Tensor:
    """Each row through the linear layer of its expert, (R, in) → (R, out)."""
    weight = weights_of(group, stack, x_RI.dtype)
    bias = None if bias_EO is None else bias_rows(bias_EO, x_RI, group)
    if group.ends_E is None:
        return F.linear(x_RI, weight, bias)
    y_RO = F.grouped_mm(x_RI, weight.mT, offs=group.ends_E)
    return y_RO if bias is None else y_RO + bias


def bias_rows(bias_EO: Tensor, like_RI: Tensor, group: RowGroup) -> Tensor:
    """Each row's bias, (R, out) or, where all rows have the same, (out,)."""
    bias = bias_EO[group.expert].to(like_RI.dtype)
    if group.ends_E is None:
        return bias
    return bias.repeat_interleave(group.rows_per_expert_E, 0, output_size=len(like_RI))


def weight_gradients(dw_EOI: Tensor | None, db_EO: Tensor | None, dy_RO: Tensor, x_RI: Tensor, group: RowGroup) -> None:
    """Fills in the gradients of a group's weights and biases, those that are wanted."""
    if dw_EOI is not None:
        weight_gradient(dw_EOI, dy_RO, x_RI, group)
    if db_EO is not None:
        bias_gradient(db_EO, dy_RO, group)


def weight_gradient(dw_EOI: Tensor, dy_RO: Tensor, x_RI: Tensor, group: RowGroup) -> None:
    if group.ends_E is not None:
        # On cards of capability 10 the kernel leaves anything in the gradients of experts without rows (pytorch #172439).
        is_idle_E11 = (group.rows_per_expert_E == 0)[:, None, None]
        dw_EOI.copy_(F.grouped_mm(dy_RO.mT, x_RI, offs=group.ends_E).masked_fill_(is_idle_E11, 0))
    else:
        product_into(dw_EOI[group.expert], dy_RO.mT, x_RI)


def bias_gradient(db_EO: Tensor, dy_RO: Tensor, group: RowGroup) -> None:
    if group.ends_E is None:
        db_EO[group.expert] = dy_RO.sum(0)
    else:
        # A product with each row's one-hot expert: to add up the rows of an index is a slow scatter.
        rows_R, experts_E = (torch.arange(n, device=dy_RO.device) for n in (len(dy_RO), len(db_EO)))
        is_expert_ER = torch.searchsorted(group.ends_E, rows_R, right=True, out_int32=True) == experts_E[:, None]
        db_EO.copy_(is_expert_ER.to(dy_RO.dtype) @ dy_RO)


def grouped_mm_serves(x_ND: Tensor, weight_EOI: Tensor) -> bool:
    """Whether `torch.nn.functional.grouped_mm` computes these products, and as one kernel.

    There is one for bf16 on CUDA, on cards of some compute capabilities, for rows that are a multiple of 16 bytes.
    Elsewhere it is a loop as well: on CUDA one that waits for each product's offsets, on a CPU one that leaves the
    cache between the products; and on MPS no release has it yet.
    """
    if x_ND.device.type != "cuda" or x_ND.dtype != torch.bfloat16:
        return False
    aligned = all(size * x_ND.element_size() % 16 == 0 for size in weight_EOI.shape[1:])
    return aligned and torch.cuda.get_device_capability(x_ND.device)[0] in GROUPED_MM_CAPABILITIES
