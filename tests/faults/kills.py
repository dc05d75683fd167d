"""Kill a run, resume it, and demand the bits of the run that nothing disturbed."""

from __future__ import annotations

import random
import shutil
import signal
import time
from pathlib import Path

from tests.faults import kill_points
from tests.faults.runs import Workshop, parted, start

# Of the killed runs this share is killed once more while it is being resumed.
KILLED_TWICE = 0.3


def killed_at(shop: Workshop, point: str, folder: Path) -> list[str]:
    """What is wrong after a kill at a named point and a resume; empty if nothing."""
    more = ("--cache-dir", folder / "own-cache") if "cache" in point else ()
    outcome = shop.run(folder / "run", *more, prepare=lambda: kill_points.patch(point))
    if outcome.code != -signal.SIGKILL:
        return [f"the run never came by: it ended with {outcome.code} {outcome.err.strip()[-300:]}"]
    return resumed(shop, folder, *more)


def killed_after(shop: Workshop, draw: random.Random, folder: Path) -> list[str]:
    """The same after a kill at a random moment, and sometimes one more during the resume."""
    killed = start(shop.arguments(folder / "run"))
    time.sleep(draw.uniform(0, shop.seconds))
    killed.signal(signal.SIGKILL)
    killed.finish()
    if draw.random() < KILLED_TWICE:
        again = start(["--resume", "--checkpoint-dir", folder / "run"])
        time.sleep(draw.uniform(0, shop.seconds))
        again.signal(signal.SIGKILL)
        again.finish()
    return resumed(shop, folder)


def resumed(shop: Workshop, folder: Path, *more) -> list[str]:
    outcome = shop.go_on(folder / "run", *more)
    if outcome.code != 0:
        return [f"going on ended with {outcome.code}: {outcome.err.strip()[-300:]}"]
    wrong = parted(shop.expected, folder / "run")
    if not wrong:
        shutil.rmtree(folder)
    return wrong
