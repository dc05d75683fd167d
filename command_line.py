"""What all command lines share: a mistake is reported in one line, and told by the exit code."""

from __future__ import annotations

import argparse
import codecs
import contextlib
import difflib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch

import durable_files
from settings import UserError

LONGEST_LINE = 1200
NOBODY_READS = 141


def one_line(error: BaseException) -> str:
    """An error's text in one line that can be read, even where it quotes a value of many lines or characters."""
    text = " ".join(str(error).split())
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} … {text[-half:]}"


def quoted(text: object) -> str:
    """An argument as it stands in a command that can be copied: for a POSIX shell or, on Windows, for its programs."""
    return subprocess.list2cmdline([str(text)]) if durable_files.IS_WINDOWS else shlex.quote(str(text))


def is_out_of_memory(error: BaseException) -> bool:
    """CUDA has its own exception; MPS, the CPU's allocator and oneDNN, which has its own memory, say it in words."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words, text = ("MPS backend out of memory", "DefaultCPUAllocator"), str(error)
    # Of what oneDNN cannot do at all it says "could not create a primitive descriptor …".
    is_said = any(word in text for word in words) or text == "could not create a primitive"
    return isinstance(error, RuntimeError) and is_said


class Ending:
    """What a command that cannot go on says, and with which exit code it ends.

    2 where something given cannot work, 4 out of memory, 130 stopped by Ctrl-C, 141 where nobody reads on; a `UserError`
    may have an `exit_code` of its own.

    Args:
        out_of_memory: what to do about it.
        stopped: what is said of Ctrl-C.
    """

    def __init__(self, out_of_memory: str = "", stopped: str = "stopped"):
        self.out_of_memory, self.stopped = out_of_memory, stopped

    def of(self, error: BaseException) -> tuple[int, str] | None:
        """The exit code and the line for an error; None for a fault of ours, whose traceback is wanted."""
        if isinstance(error, UserError):
            return getattr(error, "exit_code", 2), f"error: {one_line(error)}"
        if isinstance(error, KeyboardInterrupt):
            return 130, f"\n{self.stopped}"
        if isinstance(error, BrokenPipeError):
            return NOBODY_READS, ""
        if isinstance(error, OSError):  # of a path that cannot be one, or of a full disk behind the output
            return 2, f"error: {one_line(error)}"
        if is_out_of_memory(error):
            return 4, f"error: out of memory: {self.out_of_memory}"
        return None

    def say(self, line: str, error: BaseException) -> None:
        print(line, file=sys.stderr)


def as_it_came(error: UnicodeError) -> tuple[str | bytes, int]:
    """For a stream that has no letter for something, which must not end the program.

    The bytes of a name that is no UTF-8 are written as they came, so that a command that is printed can be copied; for
    anything else ? is shown.
    """
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.lookup_error("replace")(error)


def run_command(work: Callable[[], int | None], out_of_memory: str, stopped: str = "stopped") -> int:
    """Runs a command and returns its exit code; what goes wrong is told in one line, as `Ending` says."""
    return run_to_its_end(work, Ending(out_of_memory, stopped))


def run_to_its_end(work: Callable[[], int | None], ending: Ending) -> int:
    """Runs `work` and returns the exit code: what it returns (None is 0), or that of its ending."""
    codecs.register_error("as it came", as_it_came)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the program began, as by >&-
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        if hasattr(getattr(sys, name), "reconfigure"):  # those of a notebook show everything
            getattr(sys, name).reconfigure(errors="as it came")
    try:
        return printed(work)
    except BaseException as error:
        found = ending.of(error)
        if found is None:
            raise
        code, line = found
        with contextlib.suppress(BrokenPipeError):
            if line:
                ending.say(line, error)
        drop_what_nobody_reads()
        return code


def printed(work: Callable[[], int | None]) -> int:
    """The exit code of `work`, when all is out that it printed; `--help` ends by SystemExit."""
    try:
        code = work()
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return code or 0


def drop_what_nobody_reads() -> None:
    """Python would complain of it once more, and end with a code of its own, while it closes what is left."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def require_new_file(out: Path, checkpoint: Path) -> None:
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
