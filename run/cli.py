"""The command line: every field of `TrainingConfig` as a flag, over the values of a preset."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import torch

from command_line import OneLineParser
from config import PRESETS, TrainingConfig, UserError
from phases import HISTORY_NAME, LAUNCHERS_NAME, STATE_NAME
from report.history import read_history
from run.resume import RunComplete
from run.run_state import read_saved_config
from run.start_model import follow_start_model
from training import torchrun
from training.device import pick_device

DESCRIPTION = """Trains a dense language model, upcycles it to a mixture of experts, and grows that in
width and depth, proving at each boundary that the model still computes what it computed before."""

EPILOG = """examples:
  python train_tinystories.py                          the preset that suits this machine
  python train_tinystories.py --plan                   what it would take, without training
  python train_tinystories.py --data stories.txt       your own stories
  python train_tinystories.py --resume                 go on where a run was stopped
  torchrun --nproc-per-node=4 train_tinystories.py     four ranks share the model and each batch
  python train_tinystories.py --scale-factor 1.5 --extra-layers 2   grow less (out of memory)"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python train_tinystories.py [--plan] [--preset NAME] [--SETTING VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--plan", action="store_true", help="print geometry, parameters and memory of each phase, and train nothing"
    )
    groups: dict[str, argparse._ArgumentGroup] = {}
    for item in dataclasses.fields(TrainingConfig):
        group = item.metadata["group"]
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        kind = type(item.default)
        choices = item.metadata["choices"]
        takes = {"type": kind, "choices": choices, "metavar": None if choices else kind.__name__.upper()}
        groups[group].add_argument(
            "--" + item.name.replace("_", "-"),
            default=argparse.SUPPRESS,
            help=f"{item.metadata['help']} {default_text(item)}".replace("%", "%%"),
            **({"action": "store_true"} if kind is bool else takes),
        )
    return parser


def default_text(item: dataclasses.Field) -> str:
    values = {name: getattr(preset, item.name) for name, preset in PRESETS.items()}
    if item.name == "preset" or isinstance(item.default, bool) or item.default == "":
        return ""
    if len(set(values.values())) == 1:
        return f"(default: {item.default})"
    return "(" + ", ".join(f"{name}: {value}" for name, value in values.items()) + ")"


def parse_config(arguments: list[str] | None, say=print) -> tuple[TrainingConfig, torch.device, bool]:
    """The run's config, its device, and whether only the plan is wanted.

    Without `--preset` the device chooses, and a line says so.

    Raises:
        UserError: an unknown flag or preset, values that cannot work, or nothing to resume.
        RunComplete: the run to resume has ended.
    """
    torchrun.be_quiet_unless_first()
    given = vars(build_parser().parse_args(arguments))
    plan_only = given.pop("plan")
    if "preset" in given and given["preset"] not in PRESETS:
        raise UserError(f"--preset {given['preset']}: unknown; the presets are {', '.join(PRESETS)}")
    if torchrun.restarts() and is_begun_by_launcher(Path(given.get("checkpoint_dir", TrainingConfig.checkpoint_dir))):
        # torchrun starts its command again after a rank has failed: its run is there, and goes on.
        given |= {"resume": True, "overwrite": False}
    if given.get("resume"):
        config = dataclasses.replace(saved_config(given), **given)
        config.validate()
        return config, pick_device(config.device), plan_only
    device = pick_device(given.get("device", "auto"))
    preset = given.get("preset") or ("tiny" if device.type == "cpu" else "reference")
    if "preset" not in given:
        other = "reference" if preset == "tiny" else "tiny"
        say(
            f"Preset {preset}, because the device is {device}; --preset {other} chooses the other, "
            f"--help shows every setting"
        )
    config = follow_start_model(dataclasses.replace(PRESETS[preset], **given), given, say)
    config.validate()
    return config, device, plan_only


def is_begun_by_launcher(folder: Path) -> bool:
    """Whether the torchrun that has started this process had begun the run in the folder before."""
    path = folder / LAUNCHERS_NAME
    is_ours = path.exists() and torchrun.launcher() in path.read_text(encoding="utf-8").splitlines()
    return is_ours and (folder / STATE_NAME).exists()


def saved_config(given: dict) -> TrainingConfig:
    """The settings of the run in the given `checkpoint_dir`, which resuming takes over.

    Raises:
        UserError: there is no run that could go on.
    """
    folder = Path(given.get("checkpoint_dir", TrainingConfig.checkpoint_dir))
    if (folder / STATE_NAME).exists():
        return dataclasses.replace(read_saved_config(folder), overwrite=False, checkpoint_dir=str(folder))
    if (folder / HISTORY_NAME).exists() and any(
        row["event"] == "summary" for row in read_history(folder / HISTORY_NAME)
    ):
        raise RunComplete(f"The run in {folder} is complete: there is nothing to go on with; more steps are a new run")
    raise UserError(f"{folder} holds no saved state ({STATE_NAME}) to resume; start without --resume")
