#!/usr/bin/env python3
"""Measures a trained model on a text: loss, perplexity, bits per byte, speed, and what its experts take.

    python evaluate.py --checkpoint checkpoints/large_moe_final.pt --data valid.txt

Exit codes: 0 done, 2 something given cannot work, 4 out of memory, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
from pathlib import Path

import torch

from command_line import OneLineParser, run_command
from config import UserError
from data import mean_bytes_per_token
from data.whole_text import read_whole_text
from durable_files import reason, replacing
from inference.checkpoint import add_common_flags, latest_checkpoint, load_trained
from inference.expert_words import MIN_COUNT, TokensOfExperts, table
from inference.text_loss import measure_loss
from models import summary
from training.device import pick_device
from training.heldout import bits_per_byte
from transfer.rounding import dtype_name

DESCRIPTION = """Measures a trained model on every token of a text: held-out loss in nats a token, perplexity, bits per
byte of text (which compares across vocabularies) and tokens per second; of a mixture of experts also how evenly each
layer's experts are used, and which words each of them takes."""

EPILOG = """The text is cleaned as for training, tokenised with the model's own tokenizer, each story followed by one
end-of-text, and cut into windows of context_length + 1 tokens, each beginning with the last token of the one before. So
every token but the first is predicted once, from the 1 to context_length tokens before it in its window. During
training the held-out loss is measured on a few windows of that length; this is the whole text.

examples:
  python evaluate.py --data builtin                                the built-in stories that training holds out
  python evaluate.py --checkpoint checkpoints/dense_model.pt --data valid.txt
  python evaluate.py --data valid.txt --max-tokens 100000 --json figures.json
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python evaluate.py [--checkpoint FILE] --data TEXT [--SETTING VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the latest phase's in checkpoints/")
    parser.add_argument(
        "--data",
        required=True,
        metavar="TEXT",
        help="builtin or tinystories: the stories that training holds out. A PATH: all stories in it; .txt with "
        "<|endoftext|> between stories, .jsonl or .parquet with a text column",
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="read only the first N tokens (default: all)")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="windows at a time (default: 8)")
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16"),
        default="fp32",
        help="of the matrix products; fp32 takes the weights' own, as training's held-out losses do (default: fp32)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there, too")
    add_common_flags(parser)
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UserError for flags, or values that nothing could be measured with."""
    given = build_parser().parse_args(arguments)
    if given.max_tokens is not None and given.max_tokens < 2:
        raise UserError(f"--max-tokens is {given.max_tokens}, must be at least 2: one to predict another from")
    if given.batch_size < 1:
        raise UserError(f"--batch-size is {given.batch_size}, must be at least 1")
    if given.json and (given.json.is_dir() or not given.json.parent.is_dir()):
        raise UserError(f"--json {given.json}: it is a folder, or there is no folder {given.json.parent}")
    return given


def evaluate(given: argparse.Namespace) -> dict:
    """Measures, prints and returns all figures.

    Raises:
        UserError: the model or the text cannot be used.
    """
    path = given.checkpoint or latest_checkpoint()
    _, model, encoding = load_trained(path, given.tokenizer, pick_device(given.device))
    text = read_whole_text(given.data, encoding, given.max_tokens)
    n_tokens = len(text.tokens)
    if (text.tokens == encoding.eot_token).all():
        raise UserError(f"of {text.description} the tokenizer of {path} makes no token; give another text")
    print(f"model  {path}: {summary(model.config)}")
    print(
        f"text   {text.description}: {'all of its' if text.is_whole else 'the first'} {n_tokens:,} tokens, "
        f"{text.n_stories:,} stories; windows of {model.config.context_length} tokens"
    )
    model.compute_dtype = torch.bfloat16 if given.precision == "bf16" else None
    taken = TokensOfExperts(model) if model.config.is_moe else None
    with taken.counting(model) if taken else contextlib.nullcontext():
        measured = measure_loss(model, text.tokens, given.batch_size)
    if not math.isfinite(measured.loss):
        raise UserError(f"the loss of {path} is {measured.loss}: its weights are damaged, or training ran away")
    figures = {
        "checkpoint": str(path),
        "data": text.description,
        "stories": text.n_stories,
        "tokens": n_tokens,
        "tokens_predicted": measured.n_predicted,
        "context_length": model.config.context_length,
        "loss": measured.loss,
        "perplexity": math.exp(measured.loss),
        "bits_per_byte": bits_per_byte(measured.loss, mean_bytes_per_token(text.tokens, encoding, encoding.eot_token)),
        "tokens_per_second": measured.n_predicted / measured.seconds,
        "device": model.device.type,
        "precision": dtype_name(model.compute_dtype or model.embedding.weight.dtype),
    }
    print(f"\nheld-out loss      {figures['loss']:.4f} nats a token, over {measured.n_predicted:,} tokens")
    print(f"perplexity         {figures['perplexity']:,.2f}")
    print(f"bits per byte      {figures['bits_per_byte']:.3f}")
    print(f"tokens per second  {figures['tokens_per_second']:,.0f} ({figures['device']}, {figures['precision']})")
    if taken:
        try:
            figures["experts"] = show_experts(taken, encoding)
        except Exception as error:  # the figures above are complete without
            print(f"⚠️ the experts' words are left out: {reason(error)}", file=sys.stderr)
    return figures


def show_experts(taken: TokensOfExperts, encoding) -> list[list[dict]]:
    """Prints each expert's share and words, and returns them by layer."""
    layers = taken.experts(encoding)
    print(
        f"\nExperts: their share of a layer's slots (each token has {taken.top_k}), and the words with the highest "
        f"lift:\nhow many times as often as any token the expert takes this one. Counted: tokens that occur "
        f"{MIN_COUNT}\ntimes or more, at each occurrence as an input; + has no space before it, ␣ is a space.\n"
    )
    print(table(layers))
    return [
        [{"share": share, "words": [word._asdict() for word in words]} for share, words in experts]
        for experts in layers
    ]


def write_json(path: Path, figures: dict) -> None:
    try:
        with replacing(path) as file:
            text = json.dumps(figures, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
            # What of a name is no UTF-8 comes out as JSON's own escapes, from which a reader gets the name.
            file.write(text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        raise UserError(f"--json {path} cannot be written: {error.strerror}") from error


def run(arguments: list[str] | None) -> None:
    given = parse(arguments)
    figures = evaluate(given)
    if given.json:
        write_json(given.json, figures)


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: run(arguments), "a smaller --batch-size, or --device cpu")


if __name__ == "__main__":
    sys.exit(main())
