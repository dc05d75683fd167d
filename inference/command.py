"""How `generate.py` and `evaluate.py` end: with an exit code, and one line where something went wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from command_line import one_line
from config import UserError
from training.plan import is_out_of_memory


def exit_code(run: Callable[[list[str] | None], None], arguments: list[str] | None, out_of_memory: str) -> int:
    """Runs a command: 0, 2 for what cannot work, 4 out of memory, 130 after Ctrl-C, 141 where nobody reads on.

    Args:
        out_of_memory: what to do about it.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for what it has no letter for; that must not end the program.
        stream.reconfigure(errors="replace")
    try:
        run(arguments)
        sys.stdout.flush()
        return 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As `| head` does. Python would complain once more while it closes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # a full disk behind the output
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {out_of_memory}", file=sys.stderr)
        return 4
