"""README.md of an exported model: what it is, how to open it, and the figures of the run that made it."""

from __future__ import annotations

from pathlib import Path

from config import ModelConfig
from models import count_parameters
from phases import HISTORY_NAME, PHASES, PICTURE_NAME, phase_of
from report.history import read_history


def model_card(config: ModelConfig, checkpoint: Path, name: str, note: str = "") -> str:
    """Markdown, with the front matter that Hugging Face reads.

    Args:
        checkpoint: the model file; the run's history and picture are taken from beside it, where they are.
        note: what a reader has to know of code that the folder brings; empty where it brings none.
    Raises:
        UserError: the history is damaged.
    """
    remote = ", trust_remote_code=True" if note else ""
    rows = run_rows(checkpoint)
    return "\n".join(
        [
            "---",
            "library_name: transformers",
            "pipeline_tag: text-generation",
            *(["tags:", "- custom_code"] if note else []),
            "---",
            f"# {name}",
            "",
            *([f"{note}. It computes with the code in this folder and nothing else of ours.", ""] if note else []),
            *geometry(config),
            "",
            "```python",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'tokenizer = AutoTokenizer.from_pretrained("DIR"{remote})',
            f'model = AutoModelForCausalLM.from_pretrained("DIR"{remote})',
            'ids = tokenizer("Once upon a time", return_tensors="pt").input_ids',
            "print(tokenizer.decode(model.generate(ids, max_new_tokens=48)[0]))",
            "```",
            *(figures(rows, checkpoint) if rows else ["", f"No {HISTORY_NAME} was beside the model: no figures."]),
            "",
        ]
    )


def run_rows(checkpoint: Path) -> list[dict]:
    """The history of the run beside a model file; none where there is no history. Raises UserError if it is damaged."""
    history = checkpoint.with_name(HISTORY_NAME)
    return read_history(history) if history.is_file() else []


def geometry(config: ModelConfig) -> list[str]:
    """A table of the architecture."""
    count = count_parameters(config)
    experts = f"{config.n_experts} experts a layer, {config.top_k} of them for each token" if config.is_moe else "MLP"
    family = f"GPT-NeoX, {'parallel' if config.parallel_residual else 'sequential'} residual"
    if config.is_llama:
        family = "Mixtral" if config.is_moe else "Llama"
    heads = f"{config.n_heads}" + f" on {config.n_kv_heads} key-value heads" * (config.queries_per_kv > 1)
    values = {
        "architecture": f"{family}, {experts}",
        "parameters": f"{count.total:,}, of which a token uses {count.active:,}",
        "width × layers × heads": f"{config.d_model} × {config.n_layers} × {heads}",
        "vocabulary, tokenizer": f"{config.vocab_size:,}, {config.tokenizer or 'not named in the model file'}",
        "context": f"{config.context_length} tokens",
        "rotary": f"{config.rotary_share:.0%} of each head, base {config.rope_base:g}",
        "output matrix": "the input embedding" if config.tied else "its own",
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in values.items())]


def figures(rows: list[dict], checkpoint: Path) -> list[str]:
    """Held-out losses, boundaries and circumstances, up to the phase whose model this is; nothing for a model that no
    phase of the run has made."""
    phase = next((phase.number for phase in PHASES if phase.file == checkpoint.name), None)
    last = {row["phase"]: row for row in rows if row["event"] == "eval" and phase and row["phase"] <= phase}
    if phase not in last:
        return []
    run = rows[0]
    lines = ["", "## The run", ""]
    if run["event"] == "run":
        lines += [f"{run['data']['source']}; seed {run['config']['seed']}, {run['device']}, {run['precision']}.", ""]
    lines += ["| after phase | tokens | held-out loss (nats a token) | bits per byte |", "|---|---|---|---|"]
    lines += [
        f"| {number}, {phase_of(number).kind} | {row['tokens']:,} | {number_text(row['loss'])} | "
        f"{number_text(row['bits_per_byte'])} |"
        for number, row in sorted(last.items())
    ]
    for row in rows:
        if row["event"] == "boundary" and row["to_phase"] <= phase and row["jump"] is not None:
            lines += [
                "",
                f"Growth from phase {row['from_phase']} to {row['to_phase']} moved the loss by {row['jump']:+.1e}.",
            ]
    if checkpoint.with_name(PICTURE_NAME).is_file():
        lines += ["", f"![Training and held-out loss over tokens, with the boundaries marked]({PICTURE_NAME})"]
    return lines


def number_text(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
