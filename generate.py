#!/usr/bin/env python3
"""Tells stories with a trained model, or compares the stories of two.

    python generate.py --prompt "Once upon a time"

Exit codes: 0 done, 2 something given cannot work, 4 out of memory, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from command_line import OneLineParser, run_command
from config import UserError
from data.cleaning import one_form
from data.tokenizer import END_OF_TEXT
from data.tokenizer_file import TokenizerFile
from inference.checkpoint import Trained, add_common_flags, latest_checkpoint, load_trained
from inference.stories import StoryPrinter, first_difference, printable, side_by_side
from models.generation import continuations, room_for_tokens, stream_tokens
from models.sampling import Sampling
from training.device import pick_device

DESCRIPTION = """Continues prompts with a trained model: the dense one, the mixture of experts, or the grown one. Stories
come out as they are told; several prompts are computed at the same time and printed one after another."""

EPILOG = """A story ends where the model ends it, after --max-tokens, or where prompt and story fill the model's
context: no model here has learnt what comes after that. The same seed tells the same story, whatever the other prompts
are; a prompt that is given again takes the next seed.

The stories go to the standard output, everything else to the standard error. In a file, <|endoftext|> stands between
stories, as in what training reads.

examples:
  python generate.py                                                    the latest model in checkpoints/
  python generate.py --prompt "Tom had a red ball" "The sad cat" --seed 7
  python generate.py --checkpoint checkpoints/dense_model.pt --temperature 0
  python generate.py --compare checkpoints/moe_model_final.pt grown.pt  before and after growth: the same
"""
DEFAULT_PROMPT = "Once upon a time"


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage='python generate.py [--checkpoint FILE | --compare A B] [--prompt "TEXT" ...] [--SETTING VALUE ...]',
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--checkpoint", type=Path, metavar="FILE", help="default: the latest phase's in checkpoints/")
    which.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two models' stories side by side")
    parser.add_argument(
        "--prompt",
        nargs="+",
        action="extend",
        metavar="TEXT",
        help=f'how the story begins; several tell several stories (default: "{DEFAULT_PROMPT}")',
    )
    parser.add_argument("--max-tokens", type=int, metavar="N", help="tokens a story (default: as the context has room)")
    parser.add_argument(
        "--temperature", type=float, default=0.8, metavar="X", help="0: always the likeliest token (default: 0.8)"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="N", help="draw among the N likeliest; 0: among all (default: 0)"
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=0.95,
        metavar="X",
        help="draw among the fewest tokens that have this share; 1: among all (default: 0.95)",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another one tells another story (default: 0)")
    add_common_flags(parser)
    return parser


def parse(arguments: list[str] | None) -> tuple[argparse.Namespace, Sampling]:
    """Raises UserError for flags, or values that nothing could be told with."""
    given = build_parser().parse_args(arguments)
    given.prompt = given.prompt or [DEFAULT_PROMPT]
    if given.max_tokens is not None and given.max_tokens < 1:
        raise UserError(f"--max-tokens is {given.max_tokens}, must be at least 1")
    if not 0 <= given.seed < 2**63:
        raise UserError(f"--seed is {given.seed}, must be between 0 and 2**63 - 1")
    given.prompt = [one_form(prompt) for prompt in given.prompt]
    for number, prompt in enumerate(given.prompt, 1):
        if END_OF_TEXT in prompt:
            raise UserError(f"--prompt {number} holds {END_OF_TEXT}, which ends a story; give one --prompt a story")
        if not prompt.strip():
            raise UserError(f"--prompt {number} is empty; give it the first words of a story")
    return given, Sampling(given.temperature, given.top_k, given.top_p)


def encode_prompts(prompts: list[str], trained: Trained) -> list[list[int]]:
    """Raises UserError for a prompt of which the tokenizer loses a part, or that the model's context has no room for."""
    encoding = trained.encoding
    if isinstance(encoding, TokenizerFile):
        for text in map(str.strip, prompts):
            encoding.require_same(text, encoding.encode_ordinary(text))
    prompt_ids = [trained.encoding.encode_ordinary(prompt) for prompt in prompts]
    limit = trained.model.config.context_length
    for number, ids in enumerate(prompt_ids, 1):
        if not ids:
            raise UserError(f"--prompt {number} gives no token with the tokenizer of {trained.path}; give other words")
        if len(ids) > limit:
            raise UserError(f"--prompt {number} has {len(ids)} tokens, but {trained.path} reads {limit}; shorten it")
    return prompt_ids


def seeds_of(prompts: list[str], seed: int) -> list[int]:
    """One a prompt: of the prompt and its copies before it alone."""
    return [seed + prompts[:i].count(prompt) for i, prompt in enumerate(prompts)]


def note_full_contexts(trained: Trained, prompt_ids: list[list[int]], told: list[int]) -> None:
    """Says which stories, of so many tokens, end because the model reads no further."""
    config = trained.model.config
    full = [str(i) for i, ids in enumerate(prompt_ids, 1) if told[i - 1] == room_for_tokens(config, ids)]
    if full:
        which = f" of prompt {', '.join(full)}" if len(prompt_ids) > 1 else ""
        print(f"{trained.path} reads {config.context_length} tokens; the story{which} stops there", file=sys.stderr)


def tell(given: argparse.Namespace, sampling: Sampling) -> None:
    """Streams the stories of one model."""
    path = given.checkpoint or latest_checkpoint()
    trained = load_trained(path, given.tokenizer, pick_device(given.device))
    if given.checkpoint is None:
        print(f"model {path}", file=sys.stderr)
    model, encoding = trained.model, trained.encoding
    prompt_ids, told = encode_prompts(given.prompt, trained), [0] * len(given.prompt)
    is_terminal = sys.stdout.isatty()
    separator = f"\n{'─' * min(60, shutil.get_terminal_size().columns)}\n" if is_terminal else f"\n{END_OF_TEXT}\n"

    def write(text: str) -> None:
        print(printable(text) if is_terminal else text, end="", flush=True)

    printer = StoryPrinter(given.prompt, encoding, write, separator)
    start = time.perf_counter()
    n_tokens, seeds = given.max_tokens or model.config.context_length, seeds_of(given.prompt, given.seed)
    for number, token in stream_tokens(model, prompt_ids, n_tokens, encoding.eot_token, sampling, seeds):
        told[number] += token is not None
        printer.add(number, token)
    seconds = time.perf_counter() - start
    note_full_contexts(trained, prompt_ids, told)
    print(
        f"{sum(told)} tokens in {seconds:.2f} s, {sum(told) / seconds:.1f} tokens per second ({model.device.type})",
        file=sys.stderr,
    )


def compare(given: argparse.Namespace, sampling: Sampling) -> None:
    """Prints two models' stories of each prompt side by side, and where they part; one model is in memory at a time."""
    told, first = [], None
    for path in given.compare:
        trained = load_trained(path, given.tokenizer, pick_device(given.device))
        model, encoding = trained.model, trained.encoding
        first = first or encoding
        if encoding.name != first.name:
            raise UserError(f"{path} and {given.compare[0]} have other tokenizers: their tokens cannot be compared")
        prompt_ids = encode_prompts(given.prompt, trained)
        n_tokens, seeds = given.max_tokens or model.config.context_length, seeds_of(given.prompt, given.seed)
        told.append(continuations(model, prompt_ids, n_tokens, encoding.eot_token, sampling, seeds))
        note_full_contexts(trained, prompt_ids, [len(ids) for ids in told[-1]])
        del trained, model
    heads = tuple(map(str, given.compare))
    for prompt, left, right in zip(given.prompt, *told):
        texts = (prompt + encoding.decode(ids) for ids in (left, right))
        print(side_by_side(*texts, heads) + "\n\n" + first_difference(left, right, encoding) + "\n")


def run(arguments: list[str] | None) -> None:
    given, sampling = parse(arguments)
    (compare if given.compare else tell)(given, sampling)


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: run(arguments), "fewer prompts at a time, a smaller model, or --device cpu")


if __name__ == "__main__":
    sys.exit(main())
