"""Runs back to back in one process, growth included: does anything leak?   python -m tests.faults.soak --minutes 60

Prints, after each tenth of the time, and fits over all runs but the first few: resident memory in MB per run,
threads and open files, and the seconds of a run. Exit code 1 where memory grows by 1 MB a run or more, a thread or
a file is left, or runs grow slower by more than a tenth (in seconds of the processor: other programs on the machine
are no drift of ours; those of the clock are printed beside them).
"""

from __future__ import annotations

import argparse
import gc
import io
import os
import shutil
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil

import train_tinystories
from tests.faults.damage import redirected
from tests.faults.runs import Workshop

WARM_UP = 5
LARGEST_SLOPE_MB = 1.0
LARGEST_DRIFT = 0.1


def resident_mb() -> float:
    return psutil.Process().memory_info().rss / 1e6


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def one_run(shop: Workshop, folder: Path) -> tuple[float, float]:
    """The seconds of one run of all three phases, in this process: by the clock, and of the processor."""
    clock, processor = time.perf_counter(), time.process_time()
    with redirected(io.StringIO(), err := io.StringIO()):
        code = train_tinystories.main([str(argument) for argument in shop.arguments(folder)])
    if code:
        raise RuntimeError(f"a run ended with {code}: {err.getvalue()}")
    shutil.rmtree(folder)
    return time.perf_counter() - clock, time.process_time() - processor


def slope(values: list[float]) -> float:
    """Of a straight line through the values, per run."""
    return float(np.polyfit(range(len(values)), values, 1)[0])


def drift(seconds: list[float]) -> float:
    """How much longer the second half's median run takes than the first's: a busy machine makes single runs slow."""
    half = len(seconds) // 2
    return float(np.median(seconds[half:]) / np.median(seconds[:half]) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    minutes = parser.parse_args().minutes
    with tempfile.TemporaryDirectory(prefix="soak-") as name:
        shop = Workshop.at(Path(name))
        rows: list[tuple[float, float, float, int, int]] = []
        began, told = time.monotonic(), 0
        while time.monotonic() - began < 60 * minutes:
            clock, processor = one_run(shop, Path(name) / "run")
            gc.collect()
            rows.append((resident_mb(), clock, processor, threading.active_count(), open_files()))
            if (time.monotonic() - began) / (60 * minutes) * 10 >= told + 1:
                told += 1
                print(f"run {len(rows)}: {rows[-1][0]:.0f} MB, {clock:.2f} s, {rows[-1][3]} threads, "
                      f"{rows[-1][4]} files", flush=True)  # fmt: skip
    memory, clock, processor, threads, files = map(list, zip(*rows[WARM_UP:]))
    grown = slope(memory)
    print(
        f"{len(rows)} runs; memory {memory[0]:.0f} to {memory[-1]:.0f} MB, slope {grown:+.3f} MB a run; "
        f"seconds a run {np.median(clock):.2f} by the clock, second half {drift(clock):+.1%}, "
        f"{np.median(processor):.2f} of the processor, second half {drift(processor):+.1%}; "
        f"threads {threads[0]} to {threads[-1]}; files {files[0]} to {files[-1]}"
    )
    leaks = grown >= LARGEST_SLOPE_MB or threads[-1] > threads[0] or files[-1] > files[0]
    return 1 if leaks or drift(processor) > LARGEST_DRIFT else 0


if __name__ == "__main__":
    sys.exit(main())
