"""What the growth study found: its tables as Markdown, and its picture, from the results file alone.

    python -m benchmarks.growth_study_report

Prints the tables, puts them between the marker lines of docs/GROWTH_STUDY.md and draws docs/growth_study.png.
"""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.growth_study.picture import draw
from benchmarks.growth_study.results import RESULTS, read_study
from benchmarks.growth_study.tables import tables
from command_line import OneLineParser, run_command
from config import UserError

DOCS = Path(__file__).parent.parent / "docs"
MARKERS = ("<!-- tables: begin -->", "<!-- tables: end -->")


def with_tables(path: Path, text: str) -> bytes:
    """The Markdown file's content with `text` between its marker lines.

    Raises:
        UserError: the file cannot be read, or lacks the markers.
    """
    try:
        lines = path.read_bytes().decode("utf-8").splitlines(keepends=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; it needs the lines {' and '.join(MARKERS)}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text in UTF-8") from error
    places = [i for i, line in enumerate(lines) if line.strip() in MARKERS]
    if [lines[i].strip() for i in places] != list(MARKERS):
        raise UserError(f"{path} needs the lines {' and '.join(MARKERS)}, each once and in this order")
    begin, end = places
    return "".join([*lines[: begin + 1], f"\n{text}\n\n", *lines[end:]]).encode()


def parse(arguments: list[str] | None):
    """Raises UserError for unknown flags."""
    parser = OneLineParser(prog="python -m benchmarks.growth_study_report", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FILE", help="what benchmarks.growth_study wrote"
    )
    parser.add_argument(
        "--markdown", type=Path, default=DOCS / "GROWTH_STUDY.md", metavar="FILE",
        help="the tables replace what stands between its marker lines",
    )  # fmt: skip
    parser.add_argument("--picture", type=Path, default=DOCS / "growth_study.png", metavar="FILE", help="drawn anew")
    return parser.parse_args(arguments)


def report(arguments: list[str] | None) -> None:
    given = parse(arguments)
    study = read_study(given.results)
    text = tables(study)
    print(text)
    content = with_tables(given.markdown, text)
    draw(study, given.picture)
    given.markdown.write_bytes(content)


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: report(arguments), "the rows have to fit")


if __name__ == "__main__":
    sys.exit(main())
