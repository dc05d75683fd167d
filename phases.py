"""The phases of a run, in their order: the one place that knows their names, colours, files and number.

And the names of the other files that a run keeps in its folder.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

HISTORY_NAME = "training_history.jsonl"
PICTURE_NAME = "training_curves.png"
REPORT_NAME = "report.html"
STATE_NAME = "run_state.pt"
LAUNCHERS_NAME = ".torchrun"  # who has begun the run, where ranks share it: one line for each rank


@dataclass(frozen=True)
class Phase:
    """One phase. Its steps and its peak learning rate are the settings steps_phaseN and lr_phaseN.

    title: over its steps; short: in tables and figures; kind: in sentences.
    made_by: how its model comes from that of the phase before: "upcycle", "grow", or "" where it is new.
    colours: on a light and on a dark page.
    """

    number: int
    title: str
    short: str
    kind: str
    file: str
    made_by: str
    colours: tuple[str, str]

    @property
    def before(self) -> Phase | None:
        return PHASES[self.number - 2] if self.number > 1 else None

    @property
    def after(self) -> Phase | None:
        return PHASES[self.number] if self.number < len(PHASES) else None

    @property
    def until(self) -> tuple[Phase, ...]:
        """All phases up to this one, which is the last of them."""
        return PHASES[: self.number]

    @property
    def has_experts(self) -> bool:
        return any(phase.made_by == "upcycle" for phase in self.until)

    @property
    def jump_name(self) -> str:
        """What the jump into this phase is called in the history's summary: jump12."""
        return f"jump{self.number - 1}{self.number}"

    def path_in(self, folder: Path) -> Path:
        """Where a run in `folder` keeps the model with which the phase ends."""
        return folder / self.file


PHASES = (
    Phase(1, "Dense Model", "Dense", "dense", "dense_model.pt", "", ("#0a6ebd", "#5fb2f5")),
    Phase(2, "Mixture of Experts (Upcycling)", "MoE", "mixture of experts", "moe_model_final.pt", "upcycle",
          ("#b84e00", "#ff9d4d")),
    Phase(3, "Large MoE (Bilateral Growth)", "Large MoE", "grown mixture of experts", "large_moe_final.pt", "grow",
          ("#00806e", "#3fcfb4")),
)  # fmt: skip


def phase_of(number: int) -> Phase:
    return PHASES[number - 1]
