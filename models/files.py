"""Models on disk: one file with the weights and the geometry, read without running any code from it."""

from __future__ import annotations

import dataclasses
import os
import pickle
import struct
import zipfile
from pathlib import Path

import torch

from config import ModelConfig, UserError
from models.transformer import Transformer

FORMAT = "bilateral-growth-model/1"


def save_model(model: Transformer, path: str | Path) -> None:
    """Writes weights and `ModelConfig`; the file appears whole under its name or not at all.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    content = {"format": FORMAT, "config": dataclasses.asdict(model.config), "weights": model.state_dict()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"could not write the model {path}: {error}; free some space or choose another folder"
        ) from error


def load_model(path: str | Path, device: str | torch.device = "cpu") -> Transformer:
    """Reads a model written by `save_model`, in the dtype in which it was saved.

    Raises:
        UserError: the file is missing, truncated, not one of ours, or its weights do not
            fit its geometry.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"no model file at {path}")
    # What is no zip archive would be handed to torch's unpickler of old, which fails in many ways.
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} is damaged or no model of ours; train it again or copy it anew")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, LookupError, ValueError, struct.error) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged or no model of ours ({reason}); train it again or copy it anew") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path} is a torch file, but not a model of ours: its format is not {FORMAT!r}")
    try:
        config = ModelConfig(**content["config"])
        with torch.device("meta"):
            model = Transformer(config)
        model.load_state_dict(content["weights"], assign=True)
    except (RuntimeError, TypeError, KeyError, UserError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the weights in {path} do not fit the geometry that it names: {reason}") from error
    return model.requires_grad_(True)
