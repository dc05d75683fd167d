"""Writes a model file as a folder that Hugging Face's `transformers` opens: see `--help`, docs/HUGGING_FACE.md.

    python -m hugging_face.export --checkpoint checkpoints/dense_model.pt --out DIR

Exit codes: 0 done, 2 something given cannot work, 4 out of memory, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from command_line import OneLineParser, require_new_file, run_command
from config import ModelConfig, TrainingConfig, UserError
from data.tokenizer import END_OF_TEXT, find_tokenizer, load_tokenizer, tokenizer_name
from data.tokenizer_file import SUFFIX, as_tokenizer_json
from durable_files import encoded, reason, sync, sync_folder
from hugging_face.gpt_neox import neox_config, neox_weights
from hugging_face.hf_files import shape_in_file
from hugging_face.llama import llama_config, llama_weights
from hugging_face.model_card import model_card, run_rows
from models import Transformer, load_model, summary
from phases import PICTURE_NAME

SHARD_BYTES = 5_000_000_000
MOE_CODE = Path(__file__).with_name("modeling_upcycled_moe.py")
MOE_NOTE = (
    "No architecture of transformers has GELU experts with biases: this mixture of experts brings its own code, "
    f"{MOE_CODE.name}, and opens with trust_remote_code=True"
)
DESCRIPTION = """Writes a model, dense or mixture of experts, as a folder of Hugging Face's format: weights
(safetensors), config.json, generation_config.json, tokenizer and a model card. The model file is only read."""
EPILOG = """how to open it:
  AutoModelForCausalLM.from_pretrained("DIR")                           architecture llama: it is a Llama, or a Mixtral;
                                                                        neox, dense: it is a GPT-NeoX
  AutoModelForCausalLM.from_pretrained("DIR", trust_remote_code=True)   neox, mixture of experts: no stock architecture
                                                                        has GELU experts with biases
and AutoTokenizer.from_pretrained in the same way.

The card shows the run's figures and curves where training_history.jsonl and training_curves.png are beside the model.

example:
  python -m hugging_face.export --checkpoint checkpoints/dense_model.pt --out tinystories-neox
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python -m hugging_face.export --checkpoint IN --out DIR [--tokenizer NAME_OR_PATH]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )
    parser.add_argument("--checkpoint", type=Path, metavar="IN", help="the model file", required=True)
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="the folder to write; it must not exist yet", required=True
    )
    parser.add_argument(
        "--tokenizer",
        metavar="NAME_OR_PATH",
        help="gpt2, builtin or a tokenizer.json, for a model file that does not name its own",
    )
    return parser


def export(checkpoint: Path, out: Path, tokenizer: str | None = None) -> None:
    """Writes the folder `out`, whole or not at all.

    Raises:
        UserError: something cannot be read or written, or nobody knows the tokenizer.
    """
    require_new_file(out, checkpoint)
    model = load_model(checkpoint)
    config = model.config
    content, end_of_text = tokenizer_content(config, checkpoint.parent, tokenizer)
    has_own_code = config.is_moe and not config.is_llama
    card = model_card(config, checkpoint, out.name, MOE_NOTE if has_own_code else "")
    texts = settings(model, end_of_text, balance_weight_of(checkpoint))
    try:
        with new_folder(out) as folder:
            (folder / "tokenizer.json").write_bytes(content)
            for name, values in texts.items():
                (folder / name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
            write_weights(weights(model), folder, as_matrices=config.is_llama)
            (folder / "README.md").write_bytes(encoded(card))
            picture = checkpoint.with_name(PICTURE_NAME)
            if picture.is_file():
                shutil.copyfile(picture, folder / PICTURE_NAME)
            if has_own_code:
                shutil.copyfile(MOE_CODE, folder / MOE_CODE.name)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"--out {out} could not be written: {reason(error)}; free some space, or choose another folder"
        ) from error
    print(summary(config))
    if has_own_code:
        print(MOE_NOTE)


class EndOfText(NamedTuple):
    token: str
    id: int


def tokenizer_content(config: ModelConfig, folder: Path, given: str | None) -> tuple[bytes, EndOfText]:
    """The tokenizer.json of a model and its end-of-text.

    Args:
        folder: of the model file, where a tokenizer that came with an import lies.
    Raises:
        UserError: nobody knows it, it cannot be had, another one is given, or it has more ids than the model.
    """
    if not (given or config.tokenizer):
        raise UserError(
            "the model file does not name its tokenizer; give --tokenizer gpt2, builtin or a tokenizer.json"
        )
    name = find_tokenizer(given or config.tokenizer, folder)
    if name not in ("gpt2", "builtin") and not name.endswith(SUFFIX):
        raise UserError(f"--tokenizer {name}: unknown; give gpt2, builtin or the path of a tokenizer.json")
    if config.tokenizer and tokenizer_name(name) != config.tokenizer:
        raise UserError(f"--tokenizer {name}: the model was trained on the ids of {config.tokenizer}; leave it out")
    tokenizer = load_tokenizer(name)
    if tokenizer.n_vocab > config.vocab_size:
        raise UserError(
            f"the tokenizer {name} has {tokenizer.n_vocab:,} ids, but the model knows {config.vocab_size:,}; "
            f"give the one that it was trained with"
        )
    content = Path(name).read_bytes() if name.endswith(SUFFIX) else as_tokenizer_json(tokenizer, END_OF_TEXT)
    return content, EndOfText(tokenizer.decode([tokenizer.eot_token]), tokenizer.eot_token)


def balance_weight_of(checkpoint: Path) -> float:
    """Of the load-balancing loss in the run that made the model, or, where none says, in any."""
    rows = run_rows(checkpoint)
    config = rows[0].get("config", {}) if rows else {}
    return config.get("balance_weight", TrainingConfig.balance_weight)


def write_weights(tensors: dict[str, Tensor], folder: Path, as_matrices: bool) -> None:
    """One safetensors file, or shards of `SHARD_BYTES` at most and the index that says which tensor is in which.

    Args:
        as_matrices: views of more dimensions than two are written as matrices.
    Raises:
        OSError, SafetensorError: as writing does.
    """
    shards, room = [{}], SHARD_BYTES
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = tensor
        room -= tensor.nbytes
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{number:05}-of-{len(shards):05}.safetensors" for number in range(1, len(shards) + 1)]
        weight_map = {tensor: name for name, shard in zip(names, shards) for tensor in shard}
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name, shard in zip(names, shards):
        # Parts of one parameter would be refused as tensors that share memory: a copy of one shard at a time.
        copies = {
            name: tensor.reshape(shape_in_file(tensor) if as_matrices else tensor.shape).clone()
            for name, tensor in shard.items()
        }
        save_file(copies, folder / name, metadata={"format": "pt"})
        # It comes readable for its owner alone, in a folder that is made to be handed on.
        shutil.copymode(folder / "config.json", folder / name)


def weights(model: Transformer) -> dict[str, Tensor]:
    """The tensors under the names that the folder's reader knows."""
    if model.config.is_llama:
        return llama_weights(model)
    tensors = neox_weights(model)
    if model.config.is_moe:
        # Only of its own classes transformers translates what released models call the output matrix.
        tensors = {name.replace("embed_out.", "lm_head."): tensor for name, tensor in tensors.items()}
    return tensors


def settings(model: Transformer, end: EndOfText, balance_weight: float) -> dict[str, dict]:
    """The JSON files of the folder but for the tokenizer itself."""
    ids = {"bos_token_id": end.id, "eos_token_id": end.id}
    theirs = llama_config(model.config, balance_weight) if model.config.is_llama else neox_config(model.config)
    config = theirs | ids | {"torch_dtype": str(model.embedding.weight.dtype).removeprefix("torch.")}
    if model.config.is_moe and not model.config.is_llama:
        code = MOE_CODE.stem
        config |= {
            "model_type": "upcycled_moe",
            "architectures": ["UpcycledMoEForCausalLM"],
            "auto_map": {
                "AutoConfig": f"{code}.UpcycledMoEConfig",
                "AutoModelForCausalLM": f"{code}.UpcycledMoEForCausalLM",
            },
            "num_experts": model.config.n_experts,
            "num_experts_per_tok": model.config.top_k,
        }
    tokenizer = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model.config.context_length,
        "bos_token": end.token,
        "eos_token": end.token,
        "unk_token": end.token,
        "clean_up_tokenization_spaces": False,
    }
    return {
        "config.json": config,
        "generation_config.json": {**ids, "pad_token_id": end.id},
        "tokenizer_config.json": tokenizer,
    }


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A temporary folder beside `path`, which takes that name when the block ends, and is gone after an error.

    Raises:
        OSError: as writing does, or there is something at `path` by now.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with file.open("rb+") as written:
                sync(written)
        sync_folder(temporary)
        if os.path.lexists(path):  # renaming would replace an empty folder
            raise FileExistsError(17, "it exists by now")
        temporary.rename(path)
        sync_folder(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(arguments: list[str] | None = None) -> int:
    def work() -> int:
        given = build_parser().parse_args(arguments)
        export(given.checkpoint, given.out, given.tokenizer)
        print(f"Wrote {given.out}/")
        return 0

    return run_command(work, "the model has to fit", "stopped; no model was written")


if __name__ == "__main__":
    sys.exit(main())
