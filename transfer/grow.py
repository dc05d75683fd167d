"""Grows a model file in width and depth, checks that it computes the same, and writes the grown one.

    python -m transfer.grow --checkpoint IN --out OUT --scale-factor 1.5 --extra-layers 2

In memory it holds the old and the new model, no third one.

Exit codes: 0 done, 2 something given cannot work, 3 a growth check failed (nothing is written),
4 out of memory, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path

from command_line import OneLineParser, require_new_file, run_command
from config import TrainingConfig
from models import load_model, save_model, summary
from models.files import bring_tokenizer, tokenizer_beside
from transfer.rounding import PRECISIONS, dtype_name, precision_of
from transfer.simple_growth import scale_bilaterally
from transfer.verify_growth_mechanics import detailed_growth_check

DESCRIPTION = """Grows a model, dense or mixture of experts, in width and depth. The grown model computes what the
old one computed, and has room to learn more; the old file is only read."""

EPILOG = """checks, before anything is written:
  rope        every head compares positions as the head that it copies
  router      every token keeps its experts
  symmetry    the copies receive different gradients, so they will part
  functional  the same residuals, logits and loss as before
A failed check writes nothing and ends with exit code 3; docs/GROWTH_VERIFICATION.md says what to do then.

example:
  python -m transfer.grow --checkpoint checkpoints/moe_model_final.pt --out grown.pt --scale-factor 1.5 --extra-layers 2
"""


def build_parser() -> argparse.ArgumentParser:
    parser = OneLineParser(
        usage="python -m transfer.grow --checkpoint IN --out OUT [--SETTING VALUE ...]",
        description=DESCRIPTION,
        epilog=EPILOG,
    )

    def add(flag: str, takes: Callable, metavar: str, text: str, **more):
        parser.add_argument(flag, type=takes, metavar=metavar, help=text, **more)

    def add_setting(name: str, takes: Callable, metavar: str, text: str):
        default = getattr(TrainingConfig, name)
        add("--" + name.replace("_", "-"), takes, metavar, f"{text} (default: {default})", default=default)

    tolerances = ", ".join(f"{limits.tolerance:.0e} for {dtype_name(dtype)}" for dtype, limits in PRECISIONS.items())
    add("--checkpoint", Path, "IN", "the model to grow, a file written by training or by this command", required=True)
    add("--out", Path, "OUT", "the file to write; it must not exist yet", required=True)
    add_setting("scale_factor", float, "X", "width factor, 1 or more, that leaves the number of heads whole")
    add_setting("extra_layers", int, "N", "identity blocks to insert, spread evenly; 0 leaves the depth")
    add_setting(
        "noise_std",
        float,
        "X",
        "noise that makes the copies differ, as a share of each weight's own standard deviation. It cancels, so its "
        "size costs no exactness",
    )
    add_setting("seed", int, "N", "of the noise and of the new blocks")
    add("--check-tolerance", float, "X", f"largest relative drift that the checks accept (default: {tolerances})")
    return parser


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Raises UserError for flags, or values that no model could be grown with."""
    given = build_parser().parse_args(arguments)
    # The factor and the layers are judged by the model that they are for, in ModelConfig.grown.
    common = {"noise_std": given.noise_std, "seed": given.seed}
    if given.check_tolerance is not None:
        common["check_tolerance"] = given.check_tolerance
    dataclasses.replace(TrainingConfig(), **common).validate()
    return given


def grow(given: argparse.Namespace) -> list[str]:
    """Grows, checks and, if all checks pass, writes; otherwise the reasons why not.

    Raises:
        UserError: a file cannot be read or written, or the geometry cannot be grown in this way.
    """
    require_new_file(given.out, given.checkpoint)
    old_model = load_model(given.checkpoint)
    tokenizer_beside(old_model.config, given.checkpoint)
    precision_of(old_model)
    print(f"old  {summary(old_model.config)}")
    print(f"new  {summary(old_model.config.grown(given.scale_factor, given.extra_layers))}")

    new_model = scale_bilaterally(old_model, given.scale_factor, given.extra_layers, given.noise_std, given.seed)
    results = detailed_growth_check(old_model, new_model, tolerance=given.check_tolerance)
    failed = [f"{result.name} ({result.reason})" for result in results.values() if not result]
    if not failed:
        # Another program may have written there meanwhile.
        require_new_file(given.out, given.checkpoint)
        bring_tokenizer(new_model.config, given.checkpoint, given.out)
        save_model(new_model, given.out)
    return failed


def main(arguments: list[str] | None = None) -> int:
    def work() -> int:
        given = parse(arguments)
        failed = grow(given)
        if failed:
            print(f"error: growth checks failed: {'; '.join(failed)}; {given.out} was not written", file=sys.stderr)
            return 3
        print(f"\nWrote {given.out}")
        return 0

    return run_command(work, "the old and the grown model have to fit; grow less", "stopped; no model was written")


if __name__ == "__main__":
    sys.exit(main())
