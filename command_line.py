"""What all command lines share: a mistake is reported in one line."""

from __future__ import annotations

import argparse
import difflib

from config import UserError


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
