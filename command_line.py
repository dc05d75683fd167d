"""What all command lines share: a mistake is reported in one line, and told by the exit code."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Callable

from config import UserError

LONGEST_LINE = 1200


def one_line(error: Exception) -> str:
    """An error's text in one line that can be read, even where it quotes a value of many lines or characters."""
    text = " ".join(str(error).split())
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} … {text[-half:]}"


def run_command(work: Callable[[], int], too_little_memory: str) -> int:
    """Runs a command that writes one thing, at its end; returns its exit code.

    That is what `work` returns, or 2 where something given cannot work, 4 out of memory, 130 stopped by Ctrl-C.

    Args:
        too_little_memory: what has to fit, and what to do where it does not.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for a tick; it must not end the program.
        stream.reconfigure(errors="replace")
    try:
        return work()
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no model was written", file=sys.stderr)
        return 130
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and "DefaultCPUAllocator" not in str(error):
            raise
        print(f"error: out of memory: {too_little_memory}", file=sys.stderr)
        return 4


class OneLineParser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the flag that was probably meant.

    Raises:
        UserError: from `parse_args`, in place of printing the usage and ending the program.
    """

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            given = message.split(": ", 1)[1].split()[0]
            close = difflib.get_close_matches(given.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown flag {given}" + (f"; did you mean {close[0]}?" if close else "; --help lists all flags")
        raise UserError(message)
