"""Where the seconds of a whole run go.

    python -m benchmarks.run_time --json run_time.json                          the tiny preset, built-in stories
    python -m benchmarks.run_time --data train.txt --valid-data valid.txt

Runs the driver in this process, in a new folder and with an empty token cache, with a clock around each of its
parts. What no clock covers is "everything else".
"""

from __future__ import annotations

import time

START = time.perf_counter()

import contextlib
import io
import sys
import tempfile
from collections import defaultdict
from unittest import mock

import torch

import train_tinystories
from benchmarks.measuring import command_parser, exit_code, machine, table, write_json
from config import UserError

IMPORTS = time.perf_counter() - START

# Where the driver looks each function up, by what it is part of.
PARTS = {
    "device self-check": ["run.start.choose_precision"],
    "data and tokenising": ["run.start.load_data", "run.start.fingerprint"],
    "training": ["run.loop.train_step"],
    "held-out losses": ["run.loop.record_heldout_loss", "run.boundary.heldout_loss"],
    "liveness": ["run.liveness_watch.record_liveness", "run.boundary.record_liveness"],
    "stories": ["run.loop.tell_story", "run.boundary.continuation"],
    "growth": [
        "train_tinystories.upcycle_to_moe",
        "train_tinystories.scale_bilaterally",
        "train_tinystories.grow_optimizer_state",
    ],
    "growth checks": ["run.boundary.run_checks"],
    "model files": ["run.loop.save_model", "run.loop.save_after_phase", "run.loop.save_if_due"],
    "picture and report": ["train_tinystories.plot_curves", "train_tinystories.write_report"],
}


def timed_run(flags: list[str]) -> dict[str, float]:
    """Seconds by part of one run of the driver.

    Raises:
        UserError: the run did not end well.
    """
    seconds: dict[str, float] = defaultdict(float)

    def clocked(function, part: str):
        def call(*arguments, **named):
            start = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds[part] += time.perf_counter() - start

        return call

    with contextlib.ExitStack() as stack:
        for part, names in PARTS.items():
            for name in names:
                module, function = name.rsplit(".", 1)
                original = getattr(sys.modules[module], function)
                stack.enter_context(mock.patch(name, clocked(original, part)))
        stack.enter_context(contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO(), encoding="utf-8")))
        start = time.perf_counter()
        code = train_tinystories.main(flags)
        whole = time.perf_counter() - start
    if code:
        raise UserError(f"the run ended with exit code {code}: {' '.join(flags)}")
    return {"imports": IMPORTS, **seconds, "everything else": whole - sum(seconds.values())}


def run(given: list[str] | None) -> None:
    parser = command_parser("run_time", __doc__.splitlines()[0])
    parser.epilog = "Every other flag goes to train_tinystories.py."
    arguments, flags = parser.parse_known_args(given)
    with tempfile.TemporaryDirectory() as folder:
        folders = ["--checkpoint-dir", f"{folder}/run", "--cache-dir", f"{folder}/cache"]
        seconds = timed_run(["--preset", "tiny", "--data", "builtin", *folders, *flags])
    whole = sum(seconds.values())
    rows = [{"part": part, "seconds": s, "share": s / whole} for part, s in seconds.items()]
    print(table(rows))
    print(f"\nAltogether {whole:.1f} s")
    write_json(arguments.json, {"machine": machine(torch.device("cpu")), "flags": flags, "parts": rows})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
