"""The command line: every field of `TrainingConfig` as a flag, over the values of a preset."""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import textwrap
from pathlib import Path

import torch

from command_line import OneLineParser
from config import PRESETS, SETTINGS, TrainingConfig, UserError
from phases import HISTORY_NAME, LAUNCHERS_NAME, PHASES, STATE_NAME
from report.history import read_history
from run.resume import RunComplete
from run.run_state import read_saved_config
from run.start_model import follow_start_model
from settings import Setting
from training import torchrun
from training.device import pick_device

DESCRIPTION = """Trains a dense language model, upcycles it to a mixture of experts, and grows that in
width and depth, proving at each boundary that the model still computes what it computed before."""

EXAMPLES = """examples:
  python train_tinystories.py                                       the preset that suits this machine
  python train_tinystories.py --plan                                what it would take, without training
  python train_tinystories.py --data stories.txt                    your own stories
  python train_tinystories.py --resume                              go on where a run was stopped
  python train_tinystories.py --scale-factor 1.5 --extra-layers 2   grow less (out of memory)
  torchrun --nproc-per-node=4 train_tinystories.py                  four ranks share the model and each batch"""

# What `--help` explains; `--help-all` explains every setting.
FIRST = (
    "preset",
    "data",
    "checkpoint_dir",
    "resume",
    "overwrite",
    "device",
    *(f"steps_phase{phase.number}" for phase in PHASES),
    "batch_size",
    "memory",
    "scale_factor",
    "extra_layers",
    "lr_phase1",
)


class ScreenWide(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32, width=screen_width())


class HelpAll(argparse.Action):
    """Prints every setting with all that is said about it, and ends the program."""

    def __call__(self, parser, *_):
        build_parser(explains_all=True).print_help()
        parser.exit()


def screen_width() -> int:
    return min(120, shutil.get_terminal_size((120, 40)).columns) - 1


def build_parser(explains_all: bool = False) -> argparse.ArgumentParser:
    """The parser of all settings; its help explains the `FIRST` ones and names the others, or explains all."""
    parser = OneLineParser(
        usage="python train_tinystories.py [--plan] [--preset NAME] [--SETTING VALUE ...]",
        description=DESCRIPTION,
        epilog=EXAMPLES if explains_all else f"{names_of_others()}\n\n{EXAMPLES}",
        formatter_class=ScreenWide,
        add_help=False,
    )
    first = parser.add_argument_group("what people set first")
    groups = {setting.group: parser.add_argument_group(setting.group) for setting in SETTINGS.values()}
    for setting in SETTINGS.values() if explains_all else first_ones_first():
        is_explained = explains_all or setting.name in FIRST
        takes = {
            "type": setting.kind,
            "choices": setting.choices or None,
            "metavar": None if setting.choices else setting.kind.__name__.upper(),
        }
        (groups[setting.group] if explains_all else first).add_argument(
            setting.flag,
            default=argparse.SUPPRESS,
            help=help_text(setting, explains_all) if is_explained else argparse.SUPPRESS,
            **({"action": "store_true"} if setting.kind is bool else takes),
        )
    first.add_argument(
        "--plan",
        action="store_true",
        help="Print each phase's size, memory and time, and whether growth should pay; train nothing.",
    )
    first.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    first.add_argument("--help-all", nargs=0, action=HelpAll, dest=argparse.SUPPRESS, help="Print all settings.")
    return parser


def first_ones_first() -> list[Setting]:
    return [SETTINGS[name] for name in (*FIRST, *(name for name in SETTINGS if name not in FIRST))]


def help_text(setting: Setting, explains_all: bool) -> str:
    text = setting.help if explains_all else setting.short_help
    return f"{text} {default_text(setting)}".replace("%", "%%")


def names_of_others() -> str:
    """The flags that `--help` does not explain, by group."""
    lines = ["all other settings (--help-all and config.py explain them):"]
    for group in dict.fromkeys(setting.group for setting in SETTINGS.values()):
        flags = [s.flag for s in SETTINGS.values() if s.group == group and s.name not in FIRST]
        text = f"  {group.split(' (')[0] + ':':<15}{' '.join(flags)}"
        lines += textwrap.wrap(text, screen_width(), subsequent_indent=" " * 17, break_on_hyphens=False)
    return "\n".join(lines)


def default_text(setting: Setting) -> str:
    values = {name: getattr(preset, setting.name) for name, preset in PRESETS.items()}
    if setting.name == "preset" or setting.kind is bool or setting.default == "":
        return ""
    if len(set(values.values())) == 1:
        return f"(default: {setting.default})"
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
            f"--help-all shows every setting"
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
