"""What all command lines share: a mistake is reported in one line, and told by the exit code."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

from config import UserError

LONGEST_LINE = 1200


def one_line(error: Exception) -> str:
    """An error's text in one line that can be read, even where it quotes a value of many lines or characters."""
    text = " ".join(str(error).split())
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} … {text[-half:]}"


def is_out_of_memory(error: RuntimeError | MemoryError) -> bool:
    """CUDA has its own exception; MPS and the CPU's allocator say it in words."""
    words = ("MPS backend out of memory", "DefaultCPUAllocator")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(text in str(error) for text in words)


def run_command(work: Callable[[], int | None], out_of_memory: str, stopped: str = "stopped") -> int:
    """Runs a command and returns its exit code; what goes wrong is told in one line.

    That is what `work` returns (None is 0), or 2 where something given cannot work, 4 out of memory, 130 stopped by
    Ctrl-C, 141 where nobody reads on.

    Args:
        out_of_memory: what to do about it.
        stopped: what is said of Ctrl-C.
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal without UTF-8 shows ? for what it has no letter for; that must not end the program.
        stream.reconfigure(errors="replace")
    try:
        code = work()
        sys.stdout.flush()
        return code or 0
    except UserError as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\n{stopped}", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # As `| head` does. Python would complain once more while it closes what is left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # of a path that cannot be one, or of a full disk behind the output
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: out of memory: {out_of_memory}", file=sys.stderr)
        return 4


def require_writable(out: Path, checkpoint: Path) -> None:
    """Raises UserError unless a new file can be written at `out`: growing takes too long to learn it afterwards."""
    if os.path.lexists(out):
        if checkpoint.exists() and out.exists() and out.samefile(checkpoint):
            raise UserError(f"--out {out} is the model that --checkpoint names; choose another name")
        raise UserError(f"--out {out} exists already, and no model is overwritten; choose another name")
    if not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}; make it first")
    try:
        tempfile.NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", suffix=".tmp").close()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error


class OneLineParser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the flag that was probably meant; its texts are printed as they are laid out.

    Raises:
        UserError: from `parse_args`, in place of printing the usage and ending the program.
    """

    def __init__(self, **given):
        usual = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**usual | given)

    def error(self, message: str):
        if message.startswith("unrecognized arguments: "):
            given = message.split(": ", 1)[1].split()[0]
            close = difflib.get_close_matches(given.split("=")[0], self._option_string_actions, n=1)
            message = f"unknown flag {given}" + (f"; did you mean {close[0]}?" if close else "; --help lists all flags")
        raise UserError(message)
