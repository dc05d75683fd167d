"""What each rank holds and sends, from 100 M parameters on one machine to 1 T on a cluster: computed, not measured.

    python -m benchmarks.scaling_ranks
    python -m benchmarks.scaling_ranks --tokens 4096 --ranks 1,8,64 --json ranks.json

Memory is what training/plan.py says of today's code, in bf16 with weights, moments and gradients in fp32. Traffic is what
one rank receives in one step. FSDP gathers all parameters for the forward pass and again for the backward pass, and shares
out their gradients; Muon exchanges the matrices that are split inside, there and back; the ranks add up
expert counts. Expert parallelism would leave experts where they are, and send tokens to them and back, in both passes.
"""

from __future__ import annotations

import sys

import torch

from benchmarks.measuring import command_parser, exit_code, int_list, positive_int, table, write_json
from config import ModelConfig
from models import Transformer, count_parameters
from models.shards import shared_dim
from training.flops import step_flops
from training.optimizer import is_matrix, muon_period
from training.plan import GB, Machine, phase_memory

CUDA = torch.device("cuda")
VOCABULARY, CONTEXT = 50_257, 2_048
# Growth in stages from the reference card: upcycled, then (scale_factor, extra_layers).
GROWTHS = [(2, 4), (4, 12), (3, 14)]
RANKS = [1, 8, 64, 512]
TOKENS = 16_384
FP32, BF16 = 4, 2


def stages() -> list[ModelConfig]:
    """The dense reference model, the MoE that it becomes, and what that grows into."""
    dense = ModelConfig(VOCABULARY, 832, 7, 8, context_length=CONTEXT)
    models = [dense, dense.upcycled(8, 2)]
    for factor, layers in GROWTHS:
        models.append(models[-1].grown(factor, layers))
    return models


def traffic_bytes(model: ModelConfig, n_ranks: int) -> dict[str, float]:
    """What one rank receives in one step, in bytes, by cause."""
    others = (n_ranks - 1) / n_ranks
    with torch.device("meta"):
        parameters = dict(Transformer(model).named_parameters())
    split = 0.0
    for name, parameter in parameters.items():
        is_stack = parameter.ndim == 3
        if is_matrix(name) and shared_dim(parameter.shape, n_ranks) >= parameter.ndim - 2:
            split += parameter.numel() / (muon_period(model) if is_stack else 1)
    n_params = count_parameters(model).total
    counts = 8 * (1 + model.n_layers * (2 * model.n_experts + 1) * model.is_moe)
    return {
        "parameters": 2 * FP32 * n_params * others,
        "gradients": FP32 * n_params * others,
        "Muon": 2 * BF16 * split / n_ranks * others,
        "counts": 2 * counts * others,
    }


def experts_pay_from(model: ModelConfig, n_ranks: int) -> float | None:
    """Tokens of a rank and step below which sending tokens to experts moves fewer bytes than gathering experts."""
    if not model.is_moe or n_ranks == 1:
        return None
    stacks = model.n_experts * 2 * model.d_model * model.d_hidden  # of a layer
    gathered = 3 * FP32 * stacks
    sent_per_token = 4 * model.top_k * model.d_model * BF16  # there and back, in both passes
    return gathered / sent_per_token


def memory_row(model: ModelConfig, n_ranks: int, tokens: int) -> dict:
    memory = phase_memory(model, tokens * n_ranks, Machine(CUDA, torch.bfloat16, n_ranks), is_lean=False)
    return {
        **named(model),
        "ranks": n_ranks,
        "weights": memory.weights / GB,
        "moments": memory.optimizer / GB,
        "gradients": memory.gradients / GB,
        "whole at once": memory.gathered / GB,
        "activations": memory.activations / GB,
        "peak": (memory.peak - memory.process) / GB,
    }


def traffic_row(model: ModelConfig, n_ranks: int, tokens: int) -> dict:
    traffic = traffic_bytes(model, n_ranks)
    flops = step_flops(model, tokens * n_ranks // model.context_length) / n_ranks
    return {
        **named(model),
        "ranks": n_ranks,
        "FSDP": (traffic["parameters"] + traffic["gradients"]) / GB,
        "Muon": traffic["Muon"] / GB,
        "counts (kB)": traffic["counts"] / 1e3,
        "TFLOP": flops / 1e12,
        "FLOP a byte": flops / max(sum(traffic.values()), 1.0),
        "experts stay below": experts_pay_from(model, n_ranks),
    }


def named(model: ModelConfig) -> dict:
    return {
        "parameters": f"{count_parameters(model).total / 1e9:.3g} B",
        "width × layers": f"{model.d_model} × {model.n_layers}",
    }


def largest_tensors() -> list[dict]:
    """What growth and the end of a phase hold whole, on any number of ranks."""
    rows = []
    for model in stages():
        with torch.device("meta"):
            largest = max(parameter.numel() for parameter in Transformer(model).parameters())
        file = FP32 * count_parameters(model).total
        rows.append({**named(model), "largest tensor": FP32 * largest / GB, "model file (rank 0's host)": file / GB})
    return rows


def report(tokens: int, ranks: list[int]) -> str:
    models = stages()
    memory = [memory_row(model, n, tokens) for model in models for n in ranks]
    traffic = [traffic_row(model, n, tokens) for model in models for n in ranks if n > 1]
    sections = {
        "Memory of each rank, GB": memory,
        "Received by each rank in one step, GB": traffic,
        "Whole on one rank, whatever their number, GB": largest_tensors(),
    }
    about = f"Computed, not measured; {tokens:,} tokens on each rank and step, contexts of {CONTEXT:,}"
    return "\n\n".join([about] + [f"{title}\n\n{table(rows)}" for title, rows in sections.items() if rows])


def run(given: list[str] | None) -> None:
    parser = command_parser("scaling_ranks", __doc__.splitlines()[0])
    parser.add_argument(
        "--tokens", type=positive_int, default=TOKENS, metavar="N", help="of a rank and step (default: 16384)"
    )
    parser.add_argument(
        "--ranks", type=int_list, default=RANKS, help=f"as in 1,8 (default: {','.join(map(str, RANKS))})"
    )
    arguments = parser.parse_args(given)
    if arguments.tokens % CONTEXT:
        parser.error(f"--tokens {arguments.tokens}: not a multiple of the context, {CONTEXT}")
    print(report(arguments.tokens, arguments.ranks))
    rows = {"memory": memory_row, "traffic": traffic_row}
    figures = {
        name: [make(model, n, arguments.tokens) for model in stages() for n in arguments.ranks]
        for name, make in rows.items()
    }
    write_json(arguments.json, figures)


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
