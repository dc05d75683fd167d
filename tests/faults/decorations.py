"""What a run tells and draws, broken in every way: it has to end well, with the models of a run in which nothing broke."""

from __future__ import annotations

import shutil
from pathlib import Path

import train_tinystories
from config import UserError
from phases import HISTORY_NAME, PHASES, STATE_NAME
from report.history import read_history
from run import boundary, liveness_watch, loop, records
from run.compare import same_model
from run.saver import Saver
from tests.faults.runs import Workshop

WARNING = "the run goes on without it"
# By name: where it is called, and under which name.
DECORATIONS = {
    "the story": (loop, "tell_story"),
    "the story's tokens": (records, "continuation"),
    "the comparison of stories": (boundary, "compare_stories"),
    "liveness": (liveness_watch, "liveness_report"),
    "the watch of new parameters": (liveness_watch, "GradientCoverage"),
    "a look at their gradients": (liveness_watch.GradientCoverage, "look_at_language_loss"),
    "what they have had": (liveness_watch.GradientCoverage, "state"),
    "the summary": (train_tinystories, "boundary_summary"),
    "the picture": (train_tinystories, "plot_curves"),
    "the report": (train_tinystories, "write_report"),
}
ERRORS = {
    "a fault of ours": lambda: ZeroDivisionError("it broke"),
    "no text": lambda: IndexError(),
    "a mistake": lambda: UserError("it broke"),
    "memory": lambda: MemoryError("it broke"),
    "torch": lambda: RuntimeError("it broke\nin two lines"),
    "the disk": lambda: OSError(28, "No space left on device"),
    "a name": lambda: UnicodeEncodeError("utf-8", "\udcff", 0, 1, "surrogates not allowed"),
}


def broken(name: str, error: str):
    """Breaks the decoration in the process in which it is called."""

    def breaks():
        def fails(*_, **__):
            raise ERRORS[error]()

        setattr(*DECORATIONS[name], fails)
        if name == "what they have had":  # asked for where a state is saved, for which a short run may have no time
            Saver.is_due = lambda *_: True

    return breaks


def problems_with(shop: Workshop, name: str, error: str, folder: Path) -> list[str]:
    """What is wrong with a run whose decoration breaks so; empty if nothing."""
    outcome = shop.run(folder, prepare=broken(name, error))
    if outcome.code != 0:
        return [f"exit code {outcome.code}: {outcome.err.strip()[-300:]}"]
    wrong = [] if WARNING in outcome.out else ["nothing was said"]
    wrong += [f"{p.file} is another" for p in PHASES if not same_model(shop.expected / p.file, folder / p.file)]
    if (folder / STATE_NAME).exists() or read_history(folder / HISTORY_NAME)[-1]["event"] != "summary":
        wrong.append("the run is not complete")
    if not wrong:
        shutil.rmtree(folder)
    return wrong


def campaign(shop: Workshop) -> tuple[int, list[str]]:
    """All of these with all errors; how many, and what went wrong."""
    cases = [(name, error) for name in DECORATIONS for error in ERRORS]
    wrong = [
        f"{name}, {error}: {problem}"
        for number, (name, error) in enumerate(cases)
        for problem in problems_with(shop, name, error, shop.folder / f"decoration{number}")
    ]
    return len(cases), wrong
