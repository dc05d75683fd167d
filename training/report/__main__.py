"""Writes a run's report.html anew:   python -m training.report DIR [--compare OTHER]

Exit codes: 0 done, 2 something given cannot be reported.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from command_line import OneLineParser, one_line
from config import UserError
from training.report.page import write_report


def main(arguments: list[str] | None = None) -> int:
    parser = OneLineParser(
        usage="python -m training.report DIR [--compare OTHER]", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False,
    )  # fmt: skip
    parser.add_argument("folder", metavar="DIR", type=Path, help="the checkpoint folder of a run, complete or not")
    parser.add_argument("--compare", metavar="OTHER", type=Path, help="the folder of a run to set beside it")
    try:
        given = parser.parse_args(arguments)
        path = write_report(given.folder, given.compare)
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    print(f"Wrote {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
