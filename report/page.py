"""Writes `report.html`: fills page.html with the words and figures."""

from __future__ import annotations

import time
from pathlib import Path

from command_line import quoted
from config import UserError
from durable_files import encoded, reason, replacing
from phases import PHASES, REPORT_NAME
from report import details, numbers, overview
from report.beside import set_beside
from report.figures import close_ups, expert_maps, loss_charts
from report.past_run import PastRun
from report.small_figures import liveness_charts, training_charts

HERE = Path(__file__).parent


def write_report(folder: Path, other: Path | None = None) -> Path:
    """Writes the page of the run in `folder`, beside one of the run in `other` if given, and returns its path.

    Raises:
        UserError: there is no history, it is damaged, or the page cannot be written.
    """
    try:
        page = encoded(render(*(PastRun(each) for each in (folder, other) if each)))
    except UserError:
        raise
    except Exception as error:  # of rows that are other than this version writes them
        raise UserError(f"{folder} cannot be shown ({type(error).__name__}: {error}); its history is whole") from error
    path = folder / REPORT_NAME
    try:
        with replacing(path) as file:
            file.write(page)
    except OSError as error:
        raise UserError(f"could not write {path}: {reason(error)}; models and history are complete") from error
    return path


def render(past: PastRun, other: PastRun | None = None) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    # Whatever is in a history, stories above all, is text and no markup: autoescape.
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {
        "details": details,
        "numbers": numbers,
        "overview": overview,
        "minus": lambda text: text.replace("-", "−"),
    }
    return environment.get_template("page.html").render(
        style=Markup((HERE / "style.css").read_text(encoding="utf-8")),
        past=past,
        phases=PHASES,
        folder=quoted(past.folder),
        verdict=overview.verdict(past),
        tiles=overview.tiles(past),
        phase_rows=overview.phase_rows(past),
        squares=overview.squares(past),
        loss=loss_charts(past, other),
        close_ups=close_ups(past),
        training=training_charts(past),
        experts=expert_maps(past),
        liveness=liveness_charts(past),
        beside=set_beside(past, other) if other else None,
        settings=details.settings(past),
        machine=details.machine(past),
        written=time.strftime("%Y-%m-%d %H:%M"),
    )
