"""What all command lines share: a mistake is reported in one line."""

from __future__ import annotations

import argparse
import difflib

from config import UserError

LONGEST_LINE = 1200


def one_line(error: Exception) -> str:
    """An error's text in one line that can be read, even where it quotes a value of many lines or characters."""
    text = " ".join(str(error).split())
    half = LONGEST_LINE // 2
    return text if len(text) <= LONGEST_LINE else f"{text[:half]} … {text[-half:]}"


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
