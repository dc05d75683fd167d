"""Models on disk: one file with the weights and the geometry, read without running any code from it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor

from config import ModelConfig, UserError
from durable_files import DamagedFile, beside, read_tensors, reason, replacing, write_tensors
from models.lean import keep_weights, take_weights
from models.shards import is_shared
from models.transformer import Transformer

FORMAT = "bilateral-growth-model/3"
READABLE = ("bilateral-growth-model/2", FORMAT)  # the former has no weights in two parts


def save_model(model: Transformer, path: str | Path) -> str:
    """Writes weights and `ModelConfig`; the file appears whole under its name or not at all.

    Where ranks share the model, all of them have to call it, and rank 0 writes.

    Returns:
        The file's checksum, 64 hex digits.
    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    weights = gathered_weights(model) if is_shared(model.embedding.weight) else model.state_dict()
    if not weights:
        return ""
    content = {"format": FORMAT, "config": dataclasses.asdict(model.config), "weights": weights}
    try:
        return write_tensors(content, Path(path))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"could not write the model {path}: {reason(error)}; free some space or choose another folder"
        ) from error


def gathered_weights(model: Transformer) -> dict[str, Tensor]:
    """All weights on the CPU of rank 0, gathered one by one; on other ranks none."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


def put_tokenizer(source: Path, target: Path) -> None:
    """Copies a tokenizer file, unless it is there already; the copy appears whole under its name or not at all.

    Raises:
        UserError: it cannot be read or written.
    """
    try:
        content = source.read_bytes()
        if target.is_file() and target.read_bytes() == content:
            return
        with replacing(target) as stream:
            stream.write(content)
    except OSError as error:
        raise UserError(f"could not copy the tokenizer {source} to {target}: {reason(error)}") from error


def tokenizer_beside(config: ModelConfig, source: Path) -> Path | None:
    """The tokenizer file that the model at `source` names, beside it or the file to which it is a link.

    Raises:
        UserError: it is not there. What is made of the model could not be used without it.
    """
    if not config.tokenizer.endswith(".json"):  # the others are known by name
        return None
    file = beside(source, config.tokenizer)
    if not file.is_file():
        raise UserError(f"{source} needs its tokenizer {config.tokenizer}, which is not beside it; put it there")
    return file


def bring_tokenizer(config: ModelConfig, source: Path, target: Path) -> None:
    """Puts the tokenizer file that the model at `source` names, where it names one, beside `target`.

    Raises:
        UserError: it is not there, or cannot be read or written.
    """
    file = tokenizer_beside(config, source)
    if file is not None:
        put_tokenizer(file, target.with_name(config.tokenizer))


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """Reads a model written by `save_model`, in the dtype in which it was saved; what lean memory keeps in two parts
    (models/lean.py) becomes fp32.

    Raises:
        UserError: the file is missing, one bit of it has changed, it is not one of ours, or its
            weights do not fit its geometry.
    """
    model = load_model_and_checksum(path, device)[0]
    keep_weights(model, in_two_parts=False)
    return model


def read_config(path: str | Path) -> ModelConfig:
    """The geometry in a model file, without reading its weights; `load_model` is what checks them.

    Raises:
        UserError: the file is missing, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file at {path}")
    try:
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        return ModelConfig(**checked(path, content)["config"])
    except UserError:
        raise
    except TypeError as error:  # of another version: it is whole, and names what this one does not know
        raise UserError(f"the geometry in {path} is of another version: {reason(error)}") from error
    except Exception as error:  # damage may show in any way
        raise damaged(path, DamagedFile("it cannot be read")) from error


def load_model_and_checksum(
    path: str | Path, device: str | torch.device = "cpu", mmap: bool = False
) -> tuple[Transformer, str]:
    """As `load_model`, in as many parts as were saved; with the checksum that `save_model` returned. With `mmap` weights
    stay on the disk until used."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file at {path}")
    try:
        content, checksum = read_tensors(path, device, mmap)
    except DamagedFile as error:
        raise damaged(path, error) from error
    content = checked(path, content)
    try:
        config = ModelConfig(**content["config"])
        with torch.device("meta"):
            model = Transformer(config)
        take_weights(model, content["weights"])
    except (RuntimeError, TypeError, KeyError, AttributeError, UserError) as error:
        raise UserError(f"the weights in {path} do not fit the geometry that it names: {reason(error)}") from error
    return model.requires_grad_(True), checksum


def checked(path: Path, content: object) -> dict:
    """Raises UserError where `content` is not what this version writes."""
    if not isinstance(content, dict) or content.get("format") not in READABLE:
        raise UserError(f"{path} is a torch file, but not a model of ours: its format is not {FORMAT!r}")
    return content


def damaged(path: Path, error: DamagedFile) -> UserError:
    return UserError(f"{path} is damaged or no model of ours ({error}); train it again or copy it anew")
