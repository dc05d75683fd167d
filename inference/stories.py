"""Stories on the screen: letter by letter while they are told, or two beside each other."""

from __future__ import annotations

import codecs
import shutil
import textwrap
import unicodedata
from collections.abc import Callable

import tiktoken

NARROWEST_COLUMN = 16


class StoryPrinter:
    """Prints stories that are told at the same time, one after another.

    The first is printed as it comes; when it ends, what there is of the next one, which then goes on as it comes.
    """

    def __init__(
        self, prompts: list[str], encoding: tiktoken.Encoding, write: Callable[[str], object], separator: str = "\n"
    ):
        self._encoding, self._write, self._separator = encoding, write, separator
        # A character may be spread over several tokens: it is printed when its last byte has come.
        self._decoders = [codecs.getincrementaldecoder("utf-8")("replace") for _ in prompts]
        self._unprinted = list(prompts)
        self._has_ended = [False] * len(prompts)
        self._current = 0
        self._print()

    def add(self, number: int, token: int | None) -> None:
        """What `models.generation.stream_tokens` yields."""
        token_bytes = b"" if token is None else self._encoding.decode_single_token_bytes(token)
        self._unprinted[number] += self._decoders[number].decode(token_bytes, final=token is None)
        self._has_ended[number] = token is None
        if number == self._current:
            self._print()

    def _print(self) -> None:
        while True:
            self._write(self._unprinted[self._current])
            self._unprinted[self._current] = ""
            if not self._has_ended[self._current]:
                return
            self._current += 1
            if self._current == len(self._unprinted):
                self._write("\n")
                return
            self._write(self._separator)


def printable(text: str) -> str:
    """With � for control characters, which would move the cursor or colour the terminal; lines and tabs stay."""
    return "".join("�" if unicodedata.category(c) == "Cc" and c not in "\n\t" else c for c in text)


def side_by_side(left: str, right: str, heads: tuple[str, str], width: int | None = None) -> str:
    """Two texts in columns under their heads, fitted to the terminal's width."""
    width = shutil.get_terminal_size().columns if width is None else width
    column = max((width - 3) // 2, NARROWEST_COLUMN)
    sides = []
    for head, text in zip(heads, (left, right)):
        head = head if len(head) <= column else "…" + head[1 - column :]
        lines = [part for line in printable(text).split("\n") for part in textwrap.wrap(line, column) or [""]]
        sides.append([head, "─" * column, *lines])
    height = max(map(len, sides))
    rows = zip(*(side + [""] * (height - len(side)) for side in sides))
    return "\n".join(f"{a:<{column}} │ {b}".rstrip() for a, b in rows)


def first_difference(left: list[int], right: list[int], encoding: tiktoken.Encoding) -> str:
    """One line: where two continuations part, or that they do not."""
    if left == right:
        return f"the same, token for token ({len(left)} tokens)"
    place = next((i for i, (a, b) in enumerate(zip(left, right)) if a != b), min(len(left), len(right)))
    words = [
        repr(encoding.decode(ids[place : place + 1])) if place < len(ids) else "the end of the story"
        for ids in (left, right)
    ]
    return f"they part at token {place + 1} after the prompt: left {words[0]}, right {words[1]}"
