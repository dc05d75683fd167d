"""With `--start-phase` the model in the checkpoint folder decides what is trained: its geometry, its tokenizer.

Its width, depth, heads, context and experts take the place of the settings' own; what has no setting
(vocabulary, epsilon, RoPE, residual, output matrix) comes with it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from config import ModelConfig, TrainingConfig, UserError
from data import StoryData
from data.tokenizer import find_tokenizer, load_tokenizer, tokenizer_name
from data.tokenizer_file import SUFFIX
from models import summary
from models.files import put_tokenizer, read_config
from phases import Phase, phase_of


def start_geometry(config: TrainingConfig) -> ModelConfig | None:
    """The geometry of the model with which `start_phase` begins; None where the run begins with a new one.

    Raises:
        UserError: the model is missing or no model of ours, or it contradicts the settings.
    """
    if config.start_phase == 1:
        return None
    path = start_path(config)
    model = read_config(path)
    if model.is_moe != phase_before(config).has_experts:
        kind = "a mixture of experts" if model.is_moe else "dense"
        raise UserError(
            f"{path} is {kind}, and phase {config.start_phase} cannot begin with it; give another --start-phase"
        )
    differ = [
        f"{name} {value}, here {getattr(config, name)}"
        for name, value in settings_of(model).items()
        if not agrees(name, value, config)
    ]
    if differ:
        raise UserError(
            f"{path} has another geometry than this run: {'; '.join(differ)}; leave these settings out, or give its own"
        )
    return model


def follow_start_model(config: TrainingConfig, given: dict, say=print) -> TrainingConfig:
    """The settings with those of the model with which `start_phase` begins, but for those `given`.

    Raises:
        UserError: the model is missing or no model of ours.
    """
    if config.start_phase == 1:
        return config
    path = start_path(config)
    model = read_config(path)
    say(f"Geometry of {path}: {summary(model)}, context {model.context_length}")
    settings = settings_of(model)
    return dataclasses.replace(config, **{name: value for name, value in settings.items() if name not in given})


def settings_of(model: ModelConfig) -> dict:
    """The settings that a model file decides, by name."""
    names = ["architecture", "d_model", "n_layers", "n_heads", "context_length"] + ["n_experts", "top_k"] * model.is_moe
    return {name: getattr(model, name) for name in names + ["tokenizer"] * bool(model.tokenizer)}


def agrees(name: str, value, config: TrainingConfig) -> bool:
    """Whether the settings say the same as the model, or nothing."""
    given = getattr(config, name)
    if name == "tokenizer" and given not in ("auto", value):
        given = tokenizer_name(find_tokenizer(given, config.checkpoint_dir))
    return given in ("auto", value)


def start_path(config: TrainingConfig) -> Path:
    return phase_before(config).path_in(Path(config.checkpoint_dir))


def phase_before(config: TrainingConfig) -> Phase:
    """That with whose model `start_phase` begins."""
    return phase_of(config.start_phase).before


def dense_of(start: ModelConfig) -> ModelConfig:
    """The geometry of phase 1 from which the run's models follow."""
    return dataclasses.replace(start, n_experts=0, top_k=ModelConfig.top_k)


def probable_dense(config: TrainingConfig, start: ModelConfig | None) -> ModelConfig:
    """The geometry of phase 1: of the model that was there, or as set, with the tokenizer that the settings name, or that
    "auto" most probably takes."""
    if start:
        return dense_of(start)
    if config.tokenizer.endswith(SUFFIX):
        return config.dense_geometry(load_tokenizer(find_tokenizer(config.tokenizer, config.checkpoint_dir)).n_vocab)
    is_gpt2 = config.tokenizer == "gpt2" or (config.tokenizer == "auto" and config.data != "builtin")
    return config.dense_geometry(50_257 if is_gpt2 else 4_097)  # neither is asked for


def require_tokenizer(start: ModelConfig, data: StoryData) -> None:
    """Raises UserError unless the stories are read with the ids of the model that the run begins with."""
    name = data.summary["tokenizer"]
    if start.tokenizer not in ("", name):
        raise UserError(
            f"the model that the run begins with has the ids of {start.tokenizer}, the stories those of {name}"
        )
    if data.tokenizer.n_vocab > start.vocab_size:
        raise UserError(
            f"the tokenizer {name} has {data.tokenizer.n_vocab:,} ids, but the model that the run begins with knows "
            f"{start.vocab_size:,}; give its own --tokenizer"
        )


def keep_tokenizer(config: TrainingConfig, folder: Path) -> None:
    """Puts a tokenizer that was given as a file beside the models, which name it.

    Raises:
        UserError: it cannot be read or written.
    """
    if not config.tokenizer.endswith(SUFFIX):
        return
    source = find_tokenizer(config.tokenizer, folder)
    put_tokenizer(Path(source), folder / tokenizer_name(source))
