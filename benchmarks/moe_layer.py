"""Our MoE layer against Hugging Face's and against a dense MLP of equal arithmetic, forward and backward.

    python -m benchmarks.moe_layer --widths 832,1664 --dtypes bf16,fp32 --json moe_layer.json

8 experts d → 4d → d with GELU and biases, of which each token uses 2. All contenders have the same weights
in the same dtype, and receive the same experts of each token and their logits, whose softmax are the gates:
routers and their losses are in nobody's time, sorting is. Gradients are those of weights, inputs and logits.

The dense peer does as many multiply-adds in its matrix products, on the same tokens: d → 4d → d on tokens × 2
rows, or d → 8d → d on the tokens. Both are timed, and shares are of the faster one. A share of 1 would be an
MoE layer for which sorting, gathering, gating and eight sets of weights cost nothing.

Errors are the largest |difference| / |expected| of output and gradients, from what fp32 gives on the same weights.
"""

from __future__ import annotations

import sys
from itertools import product

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.measuring import (
    DTYPES,
    LIMIT,
    Limit,
    command_parser,
    dtype_list,
    exit_code,
    find_limit,
    int_list,
    limit_shapes,
    machine,
    positive_int,
    table,
    time_interleaved,
    write_json,
)
from benchmarks.moe_peers import (
    dense_of_hidden_units,
    dense_on_slots,
    hugging_face,
    make_problem,
    ours,
    require_agreement,
)

N_EXPERTS, TOP_K = 8, 2
MOE = {
    "ours": ours,
    "HF grouped_mm": lambda problem: hugging_face(problem, "grouped_mm"),
    "HF eager": lambda problem: hugging_face(problem, "eager"),
}
DENSE = {"dense, 2x rows": dense_on_slots, "dense, 2x hidden": dense_of_hidden_units}


def routings(n_tokens: int) -> dict[str, Tensor]:
    """Experts of each token, int64 (n_tokens, TOP_K), never the same one twice."""
    generator = torch.Generator().manual_seed(0)
    slot = torch.arange(n_tokens * TOP_K).view(n_tokens, TOP_K)
    shuffle = torch.randperm(n_tokens, generator=generator)

    def drawn(share_E: list[float]) -> Tensor:
        return torch.multinomial(torch.tensor(share_E).expand(n_tokens, -1), TOP_K, generator=generator)

    return {
        "balanced": (slot % N_EXPERTS)[shuffle],
        "random": drawn([1.0] * N_EXPERTS),
        "Zipf": drawn([1 / rank for rank in range(1, N_EXPERTS + 1)]),
        "one expert empty": drawn([1.0] * 3 + [0.0] + [1.0] * (N_EXPERTS - 4)),
        "collapsed": torch.arange(TOP_K).repeat(n_tokens, 1),
    }


def measure(
    d_model: int, dtype_name: str, routing: str, expert_Nk: Tensor, limit: Limit, device: torch.device, moe=MOE
) -> dict:
    """One row: milliseconds of every contender of `moe` and `DENSE`, and the shares of the faster dense one.

    Args:
        limit: this machine's fastest matrix product in this dtype.
    Raises:
        AssertionError: the contenders do not agree.
    """
    dtype = DTYPES[dtype_name]
    problem = make_problem(d_model, expert_Nk, N_EXPERTS, dtype, device)
    contenders = {name: build(problem) for name, build in moe.items()}
    expected = hugging_face(problem.to(torch.float32), "eager")()
    errors = require_agreement(contenders, expected, dtype)
    del expected
    contenders |= {name: build(problem) for name, build in DENSE.items()}
    timings = time_interleaved(contenders | {LIMIT: limit.call}, device)
    limit_rate = limit.rate(timings[LIMIT])
    fastest_dense = min(timings[name].seconds for name in DENSE)
    return {
        "dtype": dtype_name,
        "width": d_model,
        "routing": routing,
        **{f"{name} ms": 1e3 * timing.seconds for name, timing in timings.items() if name != LIMIT},
        **{f"{name} / dense": fastest_dense / timings[name].seconds for name in moe},
        "ours / limit": problem.flops / timings["ours"].seconds / limit_rate,
        "dense / limit": problem.flops / fastest_dense / limit_rate,
        "limit GFLOP/s": limit_rate / 1e9,
        "limit spread": timings[LIMIT].spread,
        "spread": max(timing.spread for name, timing in timings.items() if name != LIMIT),
        **{f"{name} error": error for name, error in errors.items()},
    }


def run(given: list[str] | None) -> None:
    parser = command_parser("moe_layer", __doc__.splitlines()[0])
    parser.add_argument("--widths", type=int_list, default=[832, 1664], help="d_model, default 832,1664")
    parser.add_argument("--dtypes", type=dtype_list, default=["bf16", "fp32"], help="default bf16,fp32")
    parser.add_argument("--tokens", type=positive_int, default=2048, help="tokens of one pass, default 2048")
    arguments = parser.parse_args(given)
    device = torch.device("cpu")
    rows, limits = [], {}
    for name in arguments.dtypes:
        shapes = [shape for width in arguments.widths for shape in limit_shapes(arguments.tokens, width)]
        limits[name] = find_limit(DTYPES[name], device, shapes)
    routed = routings(arguments.tokens)
    cases = list(product(arguments.dtypes, arguments.widths, routed))
    for name, width, routing in tqdm(cases, desc="Layers", disable=None):
        rows.append(measure(width, name, routing, routed[routing], limits[name], device))
    what = ("dtype", "width", "routing")
    for unit in (" ms", ("/ dense", "/ limit", "GFLOP/s", "spread"), " error"):
        columns = [name for name in rows[0] if name in what or name.endswith(unit)]
        print(table([{name: row[name] for name in columns} for row in rows]) + "\n")
    for name, limit in limits.items():
        print(f"Limit: this machine's best {name} matrix product, at its fastest {limit.best / 1e9:,.0f} GFLOP/s")
    fastest = {name: limit.best for name, limit in limits.items()}
    write_json(arguments.json, {"machine": machine(device), "fastest_product": fastest, "rows": rows})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
