"""A trained model with the tokenizer that its ids belong to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch

from config import TrainingConfig, UserError
from data.tokenizer import find_tokenizer, load_tokenizer, tokenizer_name
from data.tokenizer_file import TokenizerFile, notes_of
from models import Transformer, load_model
from models.files import tokenizer_beside
from phases import PHASES

DEVICES = ("auto", "cuda", "mps", "cpu")


class Trained(NamedTuple):
    path: Path
    model: Transformer
    encoding: tiktoken.Encoding | TokenizerFile


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that say what to load, and where to."""
    parser.add_argument(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="builtin, gpt2 or a tokenizer.json: what the model's ids mean, for a file that does not say it",
    )
    parser.add_argument(
        "--device", choices=DEVICES, default="auto", help="auto takes cuda, then mps, then cpu (default: auto)"
    )


def latest_checkpoint(folder: Path = Path(TrainingConfig.checkpoint_dir)) -> Path:
    """The model of the last phase that has one. Raises UserError where there is none."""
    for phase in reversed(PHASES):
        if phase.path_in(folder).is_file():
            return phase.path_in(folder)
    raise UserError(
        f"{folder}/ holds no trained model ({', '.join(phase.file for phase in PHASES)}); "
        f"train one with python train_tinystories.py, or name one with --checkpoint"
    )


def load_trained(path: Path, tokenizer: str | None, device: torch.device) -> Trained:
    """Reads a model file and its tokenizer; the model is on the device, in the dtype in which it was saved.

    Args:
        tokenizer: what was given on the command line; needed only where the file names none.
    Raises:
        UserError: the file cannot be used, or its tokenizer is unknown, not at hand or of another vocabulary. (One
            with fewer ids than the model is none: embeddings are padded.)
    """
    model = load_model(path)
    named = model.config.tokenizer
    tokenizer_beside(model.config, path)
    if named and tokenizer and tokenizer_name(find_tokenizer(tokenizer, path)) != named:
        raise UserError(f"--tokenizer {tokenizer}: {path} was trained on the ids of {named}; leave --tokenizer out")
    name = named or tokenizer
    if not name:
        raise UserError(f"{path} does not say what its ids mean; give --tokenizer builtin, gpt2 or a tokenizer.json")
    try:
        encoding = load_tokenizer(find_tokenizer(name, path))
    except ValueError as error:
        raise UserError(f"{path} was trained with a tokenizer that is not known here: {error}") from error
    is_padded = isinstance(encoding, TokenizerFile) and encoding.n_vocab <= model.config.vocab_size
    if encoding.n_vocab != model.config.vocab_size and not is_padded:
        raise UserError(
            f"{path} has a vocabulary of {model.config.vocab_size:,} ids, but the tokenizer {name} has "
            f"{encoding.n_vocab:,}; give the tokenizer that it was trained with"
        )
    for note in notes_of(encoding):
        print(f"The tokenizer {name}: {note}.", file=sys.stderr)
    return Trained(path, model.to(device), encoding)
