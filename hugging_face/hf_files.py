"""Weights and settings in a folder of Hugging Face's format, read without running any code from it."""

from __future__ import annotations

import json
import pickle
import zipfile
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from config import UserError
from durable_files import reason


def weights_in(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Every tensor with its name, one at a time: of safetensors, or else of pytorch_model.bin.

    Raises:
        UserError: there are no weights, or a file is missing or damaged.
    """
    for stem, suffix, read in (("model", ".safetensors", safe_tensors), ("pytorch_model", ".bin", pickled_tensors)):
        whole, index = folder / f"{stem}{suffix}", folder / f"{stem}{suffix}.index.json"
        if index.is_file():
            paths = [folder / name for name in shards(index)]
        elif whole.is_file():
            paths = [whole]
        else:
            continue
        missing = [path for path in paths if not path.is_file()]
        if missing:
            raise UserError(f"{missing[0]} is missing: {index.name} names it")
        if whole.is_file() and whole not in paths:
            raise UserError(
                f"{folder} holds weights twice, {whole.name} and what {index.name} names; leave one of them"
            )
        for path in paths:
            yield from read(path)
        return
    raise UserError(f"{folder} holds no weights: neither model.safetensors nor pytorch_model.bin, nor shards of them")


def shards(index: Path) -> list[str]:
    """The files that an index names, each once. Raises UserError where it is no index."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not all(isinstance(n, str) and Path(n).name == n for n in names.values()):
        raise UserError(f"{index} does not say which tensor is in which file beside it")
    return sorted(set(names.values()))


def safe_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in file.keys():
                yield name, file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is damaged or no safetensors file ({reason(error)}); copy it anew") from error


def pickled_tensors(path: Path) -> Iterator[tuple[str, Tensor]]:
    try:
        # Files of torch before 1.6 are no zip archives, and cannot be mapped.
        content = torch.load(path, map_location="cpu", mmap=zipfile.is_zipfile(path), weights_only=True)
    except pickle.UnpicklingError as error:  # whose text is a page on how to run the file's code
        raise UserError(f"{path} holds other things than tensors, and none of its code is run") from error
    except (OSError, RuntimeError, EOFError, LookupError, ValueError) as error:
        raise UserError(f"{path} is damaged or no torch file ({reason(error)}); copy it anew") from error
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        raise UserError(f"{path} holds other things than named tensors")
    yield from content.items()


def shape_in_file(view: Tensor) -> torch.Size:
    """Of a part of a parameter, of however many dimensions: a file holds matrices (out, in) and vectors."""
    return view.shape if view.dim() < 3 else torch.Size((view.shape[:-1].numel(), view.shape[-1]))


def read_json(path: Path) -> dict:
    """Raises UserError where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is no JSON: {reason(error)}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is no JSON object")
    return content
