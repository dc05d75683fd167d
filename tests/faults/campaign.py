"""Everything that the tests in this folder do a selection of.   python -m tests.faults.campaign

Kills at every named point and at random moments, truncations and flipped bits, mistakes, decorations that break. Prints what was done
and what went wrong; exit code 0 if nothing did. Runs on one thread; how long it takes stands in
docs/RELIABILITY.md. `--memory lean --only kills` does the kills alone, in runs that keep their weights in three bytes.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phases import HISTORY_NAME
from run.run_state import read_run_state
from tests.faults import bad_input, damage, decorations, kill_points
from tests.faults.kills import killed_after, killed_at
from tests.faults.runs import Workshop
from tests.faults.strategies import flags

# By the name of each part, what it prints.
PARTS = {
    "kills": "kills",
    "damage": "truncations and flips",
    "decorations": "decorations that break",
    "mistakes": "mistakes",
}


def kills(shop: Workshop, n_random: int, say) -> tuple[int, list[str]]:
    """Kills at all named points, and at `n_random` moments."""
    wrong, points = [], kill_points.all_points()
    for index, point in enumerate(points):
        problems = killed_at(shop, point, shop.folder / f"point{index}")
        wrong += [f"killed at {point}: {problem}" for problem in problems]
        say(f"{index + 1} of {len(points)} points, {len(wrong)} wrong")
    for seed in range(n_random):
        problems = killed_after(shop, random.Random(seed), shop.folder / f"moment{seed}")
        wrong += [f"killed at random moment {seed}: {problem}" for problem in problems]
        say(f"{seed + 1} of {n_random} moments, {len(wrong)} wrong")
    return len(points) + n_random, wrong


def damaged_files(shop: Workshop, n_flips: int) -> tuple[int, list[str]]:
    """Truncates and flips the state, the model and the history of a stopped run."""
    folder = shop.folder / "stopped"
    shop.run(folder, prepare=lambda: kill_points.patch("at_a_phases_start:2"))
    os.truncate(folder / HISTORY_NAME, read_run_state(folder).history_bytes)
    return damage.campaign(folder, shop.folder / "damaged", n_flips)


def mistakes(folder: Path, n_drawn: int) -> tuple[int, list[str]]:
    """Every field, file and tokenizer with every wrong value, and `n_drawn` draws of several settings at once."""
    bad_input.story_files(folder)
    files = folder / "files"
    files.mkdir()
    cases = [
        *bad_input.cases_of_fields(),
        *bad_input.cases_of_files(files),
        *bad_input.cases_of_tokenizers(folder / "tokenizers"),
    ]
    with bad_input.quick_runs():
        wrong = [problem for case in cases if (problem := bad_input.problem_with(folder, case))]
        n_seen = 0

        @settings(
            max_examples=n_drawn, deadline=None, derandomize=True, database=None,
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(st.data())
        def drawn(data):
            nonlocal n_seen
            n_seen += 1
            if problem := bad_input.problem_with(folder, data.draw(flags())):
                wrong.append(problem)

        drawn()
    return len(cases) + n_seen, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=140, help="random kills, beside the named points")
    parser.add_argument("--flips", type=int, default=400, help="flipped bits in each file")
    parser.add_argument("--draws", type=int, default=1100, help="configurations drawn by hypothesis")
    parser.add_argument("--memory", choices=("full", "lean"), default="full", help="of the runs (default: full)")
    parser.add_argument("--only", nargs="+", choices=PARTS, help="these parts alone")
    given_ = parser.parse_args()
    failures: list[str] = []

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def part(name: str, work) -> None:
        began = time.perf_counter()
        n_cases, wrong = work()
        failures.extend(wrong)
        print(f"{name:<28}{n_cases:>6} cases, {len(wrong)} wrong, {time.perf_counter() - began:.0f} s", flush=True)
        for problem in wrong:
            print(f"  {problem}", flush=True)

    with tempfile.TemporaryDirectory(prefix="campaign-") as name:
        folder = Path(name)
        (folder / "mistakes").mkdir()
        shop = Workshop.at(folder, "--memory", given_.memory)
        print(f"An undisturbed run takes {shop.seconds:.1f} s", flush=True)
        works = {
            "kills": lambda: kills(shop, given_.moments, say),
            "damage": lambda: damaged_files(shop, given_.flips),
            "decorations": lambda: decorations.campaign(shop),
            "mistakes": lambda: mistakes(folder / "mistakes", given_.draws),
        }
        for chosen in given_.only or PARTS:
            part(PARTS[chosen], works[chosen])
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
