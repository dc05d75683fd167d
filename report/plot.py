"""`training_curves.png`: loss over tokens, phase by phase, with the boundaries marked."""

from __future__ import annotations

from pathlib import Path

from config import UserError
from durable_files import replacing
from phases import PHASES
from report.history import read_history


def plot_curves(history_path: Path, picture_path: Path) -> None:
    """Draws the picture from the history alone, so that it can be drawn again at any time.

    Raises:
        UserError: the picture cannot be written.
    """
    import matplotlib
    import matplotlib.ticker

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    rows = read_history(history_path)
    figure, axes = plt.subplots(figsize=(9, 5), constrained_layout=True)
    for phase in PHASES:
        number, (colour, _) = phase.number, phase.colours
        steps = [row for row in rows if row["event"] == "step" and row["phase"] == number]
        evals = [row for row in rows if row["event"] == "eval" and row["phase"] == number]
        axes.plot([r["tokens"] / 1e6 for r in steps], [r["loss"] for r in steps], color=colour, alpha=0.35, linewidth=1)
        starts = [(r["tokens"], r["loss_after"]) for r in rows if r["event"] == "boundary" and r["to_phase"] == number]
        points = starts + [(r["tokens"], r["loss"]) for r in evals]
        axes.plot(
            [t / 1e6 for t, _ in points],
            [loss for _, loss in points],
            "o-",
            color=colour,
            label=f"phase {number}: {phase.kind}",
        )
    boundaries = [row for row in rows if row["event"] == "boundary"]
    for number, row in enumerate(boundaries):
        # A phase without steps has both of its boundaries at one place.
        n_above = sum(other["tokens"] == row["tokens"] for other in boundaries[:number])
        axes.axvline(row["tokens"] / 1e6, color="0.5", linestyle="--", linewidth=1)
        axes.annotate(
            f" phase {row['from_phase']}→{row['to_phase']}\n jump {row['jump']:+.0e}",
            (row["tokens"] / 1e6, 0.97 - 0.1 * n_above), xycoords=("data", "axes fraction"), va="top", fontsize=9,
            color="0.3",
        )  # fmt: skip
    # The first steps fall so far that on a linear scale the boundaries would be flattened.
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 1.5, 2, 3, 4, 5, 6, 8)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("training tokens, millions")
    axes.set_ylabel("cross-entropy, nats a token")
    axes.set_title("Loss: training batches (thin), held-out stories (dots)")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.87))
    try:
        with replacing(picture_path) as file:
            figure.savefig(file, format="png", dpi=110)
    except OSError as error:
        raise UserError(f"could not write {picture_path}: {error.strerror}; models and history are complete") from error
    finally:
        plt.close(figure)
