"""What decorates a run breaks on one rank alone, wherever in it: no rank waits for another, and the run ends as ever."""

from datetime import timedelta

import pytest
import torch

from models import sampling, transformer
from phases import HISTORY_NAME, PHASES
from report.history import read_history
from run import boundary, liveness_watch, loop
from run.compare import same_model
from tests.faults.decorations import WARNING
from tests.ranks.worlds import on_ranks
from training import torchrun
from training.ranks import team
from training.shared_fate import BrokeElsewhere, shared_fate
from transfer import liveness
from transfer.gradient_coverage import GradientCoverage


def broken_on(rank: int, module, name: str, at_call: int = 1, after: bool = False) -> None:
    """On that rank the call of this number, and all later ones, raise an error, before or after their work."""
    original, calls = getattr(module, name), 0

    def breaks(*arguments, **named):
        nonlocal calls
        calls += 1
        result = original(*arguments, **named) if after else None
        if calls >= at_call and team().number == rank:
            raise MemoryError("it broke")
        return result if after else original(*arguments, **named)

    setattr(module, name, breaks)


def broken_in_a_pass_on(rank: int) -> None:
    """While a story is told, in the first block, which is whole by then on all ranks."""
    original, forward = loop.tell_story, transformer.Block.forward
    is_told = False

    def telling(*arguments):
        nonlocal is_told
        is_told = True
        try:
            return original(*arguments)
        finally:
            is_told = False

    def breaks(self, *arguments):
        if is_told and team().number == rank:
            raise torch.OutOfMemoryError("it broke")
        return forward(self, *arguments)

    loop.tell_story, transformer.Block.forward = telling, breaks


# What breaks, and how often a run of three phases says so.
BREAKS = {
    "before the story": (3, lambda: broken_on(1, loop, "tell_story")),
    "between two tokens": (5, lambda: broken_on(0, sampling.Sampling, "choose", at_call=2)),
    "in a pass of the story": (3, lambda: broken_in_a_pass_on(1)),
    "after the story": (3, lambda: broken_on(1, loop, "tell_story", after=True)),
    "the comparison": (2, lambda: broken_on(1, boundary, "parting")),
    "the second model's story": (1, lambda: broken_on(1, boundary, "continuation", at_call=4)),
    "in liveness": (4, lambda: broken_on(1, liveness, "effective_rank_share", at_call=2)),
    "a look at gradients": (2, lambda: broken_on(1, GradientCoverage, "look_at_language_loss", at_call=2)),
    "in a look at gradients": (2, lambda: broken_on(1, GradientCoverage, "look", at_call=3)),
    "after liveness": (4, lambda: broken_on(0, liveness_watch, "liveness_report", after=True)),
}


QUICK = ("in a pass of the story", "in liveness", "in a look at gradients")


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in BREAKS])
def test_a_run_ends_well_although_this_breaks_on_one_rank(name, world, two, tmp_path):
    times, breaks = BREAKS[name]

    def prepare():
        torchrun.PATIENCE = {"cpu": timedelta(seconds=20)}
        breaks()

    first, second = world.run(2, tmp_path / "run", prepare=prepare)
    assert (first.code, second.code) == (0, 0), (first.err, second.err)
    lines = [line for line in first.out.splitlines() if WARNING in line]
    assert len(lines) == times and all("it broke" in line for line in lines), first.out
    assert all(same_model(two / phase.file, tmp_path / "run" / phase.file) for phase in PHASES)
    assert read_history(tmp_path / "run" / HISTORY_NAME)[-1]["event"] == "summary"


def test_the_error_of_one_is_everybodys_at_the_next_collective_and_at_the_end():
    def work():
        def collective():
            torch.distributed.all_reduce(torch.ones(2))

        for is_last in (False, True):
            reached = []
            with pytest.raises(ZeroDivisionError if team().number == 1 else BrokeElsewhere) as raised, shared_fate():
                collective()
                reached.append(1)
                if team().number == 1:
                    raise ZeroDivisionError("it broke")
                if not is_last:
                    collective()
                reached.append(2)
            assert reached == [1] + [2] * (is_last and team().number != 1)
            assert team().number == 1 or str(raised.value) == "rank 1: it broke"
        with shared_fate():
            collective()

    on_ranks(3, work)
