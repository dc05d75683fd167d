"""Writes a run's report.html anew:   python -m report DIR [--compare OTHER]

Exit codes: 0 done, 2 something given cannot be reported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from command_line import OneLineParser, run_command
from report.page import write_report


def main(arguments: list[str] | None = None) -> int:
    return run_command(lambda: report(arguments), "the history has to fit")


def report(arguments: list[str] | None) -> None:
    parser = OneLineParser(usage="python -m report DIR [--compare OTHER]", description=__doc__)
    parser.add_argument("folder", metavar="DIR", type=Path, help="the checkpoint folder of a run, complete or not")
    parser.add_argument("--compare", metavar="OTHER", type=Path, help="the folder of a run to set beside it")
    given = parser.parse_args(arguments)
    print(f"Wrote {write_report(given.folder, given.compare)}")


if __name__ == "__main__":
    sys.exit(main())
