"""The history as it is written, for those who watch: TensorBoard event files, and Weights & Biases.

Both are mirrors: the history has everything, and a mirror that breaks is let go with one line while the run goes on.
Scalars are named after their row, `step/loss`, `eval/loss`, `boundary/jump`; steps count through the whole run.
"""

from __future__ import annotations

import dataclasses
import importlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tqdm import tqdm

from config import TrainingConfig, UserError
from durable_files import encoded, reason

# What is imported for a flag; what is installed for it has the flag's name.
PACKAGES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb"}
TENSORBOARD_FOLDER = "tensorboard"
# Below the checkpoint folder; wandb makes it, and keeps its own files beside.
WANDB_ID = Path("wandb") / "run_id.txt"
WANDB_PROJECT = "bilateral-growth"
# Of a row: what places it, and no figures.
PLACES = ("event", "time", "phase", "step", "steps", "from_phase", "to_phase", "check")
TOLD = ("step", "eval", "boundary", "verification", "liveness", "summary")


class Live:
    """Hands each row of the history to the writers that the settings ask for.

    Args:
        rows: those in the history already, of a run that goes on.
    Raises:
        UserError: a writer cannot begin, and the run is a new one; one that is under way goes on without it.
    """

    def __init__(self, config: TrainingConfig, folder: Path, rows: list[dict]):
        self.n_steps, self.phase, self.first_step = 0, 0, 0
        for row in rows:
            self.count(row)
        self.writers = {}
        for name in asked(config):
            try:
                self.writers[name] = MAKERS[name](config, folder, self.n_steps)
            except (UserError, ImportError) as error:
                if not config.resume:
                    raise
                let_go(name, error)

    def count(self, row: dict) -> int:
        """The row's step in the whole run, from 0."""
        if "phase" in row and row["phase"] != self.phase:
            self.phase, self.first_step = row["phase"], self.n_steps
        if row["event"] == "step":
            self.n_steps += 1
            return self.n_steps - 1
        if row["event"] == "eval":  # which may come before the rows of their steps
            return self.first_step + max(0, row["step"])
        return self.first_step + row["steps"] if row["event"] == "liveness" else self.n_steps

    def tell(self, row: dict) -> None:
        at = self.count(row)
        for name in list(self.writers):
            self.guarded(name, lambda writer: writer.tell(row, at))

    def close(self) -> None:
        for name in list(self.writers):
            self.guarded(name, lambda writer: writer.close())

    def guarded(self, name: str, call: Callable) -> None:
        try:
            call(self.writers[name])
        except Exception as error:  # whatever breaks here, training goes on
            del self.writers[name]
            let_go(name, error)


def let_go(name: str, error: Exception) -> None:
    tqdm.write(f"  ⚠️ {name}: {reason(error)}; the run goes on without it, the history has all")


def asked(config: TrainingConfig) -> list[str]:
    return [name for name in PACKAGES if getattr(config, name)]


def require_packages(config: TrainingConfig) -> None:
    """Raises UserError where a package that a flag needs is not installed; a run that is under way does without."""
    for name in asked(config) if not config.resume else ():
        try:
            importlib.import_module(PACKAGES[name])
        except ImportError as error:
            raise UserError(f"--{name} needs a package that is missing ({error}): pip install {name}") from error


def scalars(row: dict) -> Iterator[tuple[str, float]]:
    """The numbers of a row by name; of experts the smallest share, of clones the average cosine."""
    prefix = f"{row['event']}/{row['check']}" if "check" in row else row["event"]
    for name, value in row.items():
        if name in PLACES:
            continue
        if name == "expert_shares":
            yield f"{prefix}/smallest_expert_share", min(min(layer) for layer in value)
        elif name == "clone_cosines":
            yield from ((f"{prefix}/cosine/{cosine['kind']}", cosine["average"]) for cosine in value or [])
        elif isinstance(value, dict):
            yield from ((f"{prefix}/{name}/{key}", part) for key, part in value.items())
        elif isinstance(value, (int, float)):
            yield f"{prefix}/{name}", float(value)


class TensorBoard:
    """Event files in `tensorboard/`; what a resumed run writes again replaces what was there."""

    def __init__(self, config: TrainingConfig, folder: Path, n_steps: int):
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer = SummaryWriter(str(folder / TENSORBOARD_FOLDER), purge_step=n_steps)
        except OSError as error:
            raise UserError(f"--tensorboard cannot write {folder / TENSORBOARD_FOLDER}: {reason(error)}") from error

    def tell(self, row: dict, at: int) -> None:
        if row["event"] == "sample":
            self.writer.add_text(f"story/phase {row['phase']}", row["story"], at)
        elif row["event"] in TOLD:
            for name, value in scalars(row):
                self.writer.add_scalar(name, value, at)

    def close(self) -> None:
        self.writer.close()


class Wandb:
    """One run in the project `WANDB_PROJECT`; a resumed one goes on with it, and tells again what it trains again."""

    def __init__(self, config: TrainingConfig, folder: Path, n_steps: int):
        import wandb

        path = folder / WANDB_ID
        is_known = config.resume and path.exists()
        run_id = path.read_text(encoding="utf-8").strip() if is_known else uuid.uuid4().hex[:16]
        try:
            settings = {
                name: encoded(value).decode() if isinstance(value, str) else value
                for name, value in dataclasses.asdict(config).items()
            }
            self.run = wandb.init(
                project=WANDB_PROJECT, name=encoded(folder.name).decode(), dir=str(folder), config=settings,
                id=run_id, resume="allow",
            )  # fmt: skip
        except Exception as error:  # its own errors, and those of the network
            raise UserError(
                f"--wandb could not begin: {reason(error).rstrip('.')}; WANDB_MODE=offline needs no account, no network"
            ) from error
        path.parent.mkdir(exist_ok=True)
        path.write_text(run_id, encoding="utf-8")
        # An axis of its own: rows of a later step may come before those of an earlier one.
        self.run.define_metric("*", step_metric="at_step")

    def tell(self, row: dict, at: int) -> None:
        if row["event"] == "sample":
            self.run.summary[f"story/phase {row['phase']}"] = row["story"]
        elif row["event"] in TOLD:
            self.run.log({**dict(scalars(row)), "at_step": at})

    def close(self) -> None:
        self.run.finish()


MAKERS = {"tensorboard": TensorBoard, "wandb": Wandb}
