"""Reads a Llama, Mistral, Mixtral or GPT-NeoX of Hugging Face's format into a model file: see `--help`,
docs/HUGGING_FACE.md.

    python -m hugging_face.import_hf EleutherAI/pythia-160m --out checkpoints/dense_model.pt

Exit codes: 0 done, 2 something given cannot work, 4 out of memory, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from command_line import OneLineParser, require_new_file, run_command
from config import ModelConfig, UserError
from data.network import reachable
from data.tokenizer import load_tokenizer, tokenizer_name
from hugging_face import gpt_neox, llama
from hugging_face.hf_files import read_json, shape_in_file, weights_in
from models import Transformer, save_model, summary
from models.files import put_tokenizer

PROBE_SECONDS = 4.0
# Masks and frequencies that older files hold beside the weights.
NO_WEIGHTS = (".attention.bias", ".attention.masked_bias", ".rotary_emb.inv_freq")
READ_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Both may say where texts end; to transformers the later one alone does, where it is there.
SAY_THE_ENDS = ("config.json", "generation_config.json")
SMALL_FILES = [*SAY_THE_ENDS, "tokenizer.json", "*.index.json"]
DESCRIPTION = """Reads a pretrained model of the Llama family (Llama, SmolLM2, TinyLlama, Mistral without a sliding window)
or of GPT-NeoX's (Pythia) into a model file from which phase 2 can start: upcycle and grow a model that you did not train.
A Mixtral is read as well, and can be grown."""
EPILOG = """what is needed in the folder: config.json, tokenizer.json, and weights as safetensors or pytorch_model.bin
(in shards or in one file; fp32, fp16 or bf16, and read to fp32). What cannot be read is refused, and config.json's field
named.

example:
  python -m hugging_face.import_hf EleutherAI/pythia-160m --out checkpoints/dense_model.pt --context-length 512
  python train_tinystories.py --start-phase 2
"""


class Family(NamedTuple):
    """How models of one kind are read; `weights` are views of a model of ours under their names."""

    title: str
    from_config: Callable[[dict, int | None, str], ModelConfig]
    weights: Callable[[Transformer], dict[str, Tensor]]
    released_name: Callable[[str], str]
    output_matrix: str


NEOX = Family("GPT-NeoX", gpt_neox.from_neox_config, gpt_neox.neox_weights, gpt_neox.released_name, "embed_out.weight")
LLAMA = Family("Llama", llama.from_llama_config, llama.llama_weights, lambda name: name, "lm_head.weight")
FAMILIES = {"gpt_neox": NEOX, **dict.fromkeys(llama.ARCHITECTURES, LLAMA)}


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python -m hugging_face.import_hf DIR_OR_NAME --out FILE [--context-length N]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("source", metavar="DIR_OR_NAME", help="a folder, or the name of a model on the hub")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        required=True,
        help="the model file to write; it must not exist yet. Its tokenizer is put beside it",
    )
    parser.add_argument(
        "--context-length",
        type=int,
        metavar="N",
        help="tokens that it will be trained on at a time; fewer take less memory (default: all that it can)",
    )
    return parser


def import_hf(source: str, out: Path, context_length: int | None = None) -> None:
    """Writes the model file, and its tokenizer beside it.

    Raises:
        UserError: the source cannot be had or read, our models cannot compute what it does, or nothing can be written.
    """
    require_new_file(out, Path(source))
    folder = Path(source) if Path(source).is_dir() else downloaded(source)
    tokenizer_path = folder / "tokenizer.json"
    if not tokenizer_path.is_file():
        raise UserError(
            f"{folder} holds no tokenizer.json, without which nobody knows what the ids mean; "
            f"put the one there that the model was trained with"
        )
    model = read_model(folder, tokenizer_name(str(tokenizer_path)), context_length)
    tokenizer = load_tokenizer(str(tokenizer_path))
    if tokenizer.n_vocab > model.config.vocab_size:
        raise UserError(
            f"{tokenizer_path} has {tokenizer.n_vocab:,} ids, but the model's vocab_size is {model.config.vocab_size:,}"
        )
    note = note_on_ends(folder, tokenizer.eot_token)
    beside = out.with_name(model.config.tokenizer)
    put_tokenizer(tokenizer_path, beside)
    save_model(model, out)
    print(summary(model.config))
    if note:
        print(note)
    print(f"Wrote {out}, and its tokenizer {beside.name} beside it")


def downloaded(name: str) -> Path:
    """The folder in which the hub's model `name` is, once it has been downloaded.

    Raises:
        UserError: it is neither a folder nor to be had.
    """
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise UserError(f"{name} is no folder, and no model on the hub has such a name")
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    # Without an answer the hub's own client would try for minutes; it still finds what it has downloaded before.
    is_offline = not reachable(endpoint, PROBE_SECONDS)
    from huggingface_hub import snapshot_download

    try:
        for weights in ("*.safetensors", "pytorch_model*.bin"):
            patterns = [*SMALL_FILES, weights]
            folder = Path(snapshot_download(name, allow_patterns=patterns, local_files_only=is_offline))
            if any(folder.glob(weights)):
                break
        return folder
    except Exception as error:  # of the network, of the hub, of its client
        why = f"no answer from {endpoint}" if is_offline else textwrap.shorten(str(error), 160)
        raise UserError(
            f"{name} is no folder, and could not be had from the hub ({why}); connect, or give a folder that holds it"
        ) from error


def read_model(folder: Path, tokenizer: str = "", context_length: int | None = None) -> Transformer:
    """The model in a folder, fp32, on the CPU; no code in it is run.

    Args:
        tokenizer: what the model will call it.
        context_length: see `Family.from_config`.
    Raises:
        UserError: a file is missing or damaged, tensors are missing, unknown or of another shape, or our models
            cannot compute what config.json says.
    """
    path = folder / "config.json"
    theirs = read_json(path)
    try:
        family = family_of(theirs)
        config = family.from_config(theirs, context_length, tokenizer)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    model = Transformer.empty(config)
    waiting, untied = family.weights(model), None
    with torch.no_grad():
        for name, tensor in tqdm(weights_in(folder), desc="reading", unit=" tensors", disable=None, leave=False):
            if name.endswith(NO_WEIGHTS):
                continue
            released = family.released_name(name)
            if released == family.output_matrix and config.tied:
                untied = tensor
                continue
            if released not in waiting:
                raise UserError(f"{folder}: the tensor {name} is none of a {family.title}'s, or is there twice")
            view = waiting.pop(released)
            shape = shape_in_file(view)
            if tensor.shape != shape or tensor.dtype not in READ_DTYPES:
                raise UserError(
                    f"{folder}: the tensor {name} is {describe(tensor)}, "
                    f"but by config.json it has to be {tuple(shape)} of floating-point numbers of 16 bits or more"
                )
            view.copy_(tensor.view(view.shape))
            if not view.isfinite().all():
                raise UserError(f"{folder}: the tensor {name} holds values that are no fp32 numbers: NaN or infinity")
    if waiting:
        names = list(waiting)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UserError(f"{folder}: the weights lack {', '.join(names[:3])}{more}")
    if untied is not None and not torch.equal(untied.float(), model.embedding.weight):
        raise UserError(f"{path}: tie_word_embeddings is true, but the weights have an output matrix of their own")
    return model


def family_of(theirs: dict) -> Family:
    """Raises UserError for a model_type that cannot be read."""
    kind = theirs.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        *others, last = map(repr, FAMILIES)
        raise UserError(f"model_type is {kind!r}, must be {', '.join(others)} or {last}, the families that can be read")
    return FAMILIES[kind]


def note_on_ends(folder: Path, end_of_text: int) -> str:
    """What to know where `transformers` ends a text elsewhere than we do; empty where it does not.

    Raises:
        UserError: it would end a text at an ordinary token, or one that does not exist.
    """
    special = {
        token["id"]: token["content"]
        for token in read_json(folder / "tokenizer.json").get("added_tokens") or ()
        if token.get("special")
    }
    others, path = [], folder
    for path in [folder / name for name in SAY_THE_ENDS if (folder / name).is_file()]:
        given = read_json(path).get("eos_token_id")
        ends = given if isinstance(given, list) else [] if given is None else [given]
        others = [end for end in ends if end != end_of_text]
        for end in others:
            if type(end) is not int or end not in special:
                raise UserError(
                    f"{path}: eos_token_id is {end!r}, which is no special token of tokenizer.json: "
                    f"texts would end there; give the id of its end-of-text, {end_of_text}"
                )
    names = ", ".join(f"{special[end]} (id {end})" for end in others)
    return f"Texts end with id {end_of_text} here; in transformers with {names}, by {path.name}" if names else ""


def describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def main(arguments: list[str] | None = None) -> int:
    def work() -> int:
        given = build_parser().parse_args(arguments)
        import_hf(given.source, given.out, given.context_length)
        return 0

    return run_command(work, "the model has to fit in fp32", "stopped; no model was written")


if __name__ == "__main__":
    sys.exit(main())
