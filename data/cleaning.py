"""Cleaning one story: mojibake repaired, outer white space removed.

TinyStories holds stories whose UTF-8 was once read as Windows-1252, so that “ became
â€œ. The damage is reversible: encode as Windows-1252, decode as UTF-8.
"""

from __future__ import annotations

import re

CLEANING_VERSION = 1
"""Part of the token cache's key: raise it whenever `clean_story` gives other text."""


def _byte_of_characters() -> dict[int, int]:
    # Bytes that Windows-1252 leaves undefined (” ends in one) came through as the C1
    # control character of the same number; a latin-1 reader turns all of them into C1.
    byte_of = {byte: byte for byte in range(256)}
    for byte in range(0x80, 0xA0):
        character = bytes([byte]).decode("cp1252", errors="ignore")
        if character:
            byte_of[ord(character)] = byte
    return byte_of


_BYTE_OF = _byte_of_characters()
_CONTINUATION = "".join(chr(c) for c, byte in _BYTE_OF.items() if 0x80 <= byte <= 0xBF)
# Good text may put these after an accented capital ("IRMÃ…"), so they prove nothing.
_PUNCTUATION = "…‘’“”–—‚„‹›«»"
_AFTER_LEAD = "".join(c for c in _CONTINUATION if c not in _PUNCTUATION)
# The first bytes of accented letters, of punctuation and symbols, and of emoji, each
# followed by as many continuation bytes as UTF-8 asks for.
_BROKEN_CHARACTER = re.compile(
    f"[ÂÃ][{re.escape(_AFTER_LEAD)}]"
    f"|â[{re.escape(_AFTER_LEAD)}][{re.escape(_CONTINUATION)}]"
    f"|ð[{re.escape(_AFTER_LEAD)}][{re.escape(_CONTINUATION)}]{{2}}"
)


def _decode_again(text: str) -> str | None:
    try:
        return bytes(_BYTE_OF[ord(character)] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _repair(text: str) -> str:
    if text.isascii() or not _BROKEN_CHARACTER.search(text):
        return text
    whole = _decode_again(text)
    if whole is not None:
        return whole
    return _BROKEN_CHARACTER.sub(lambda run: _decode_again(run.group()) or run.group(), text)


def clean_story(text: str) -> tuple[str, bool]:
    """The story without mojibake and outer white space, and whether mojibake was repaired.

    A story that is broken throughout is decoded as a whole. One that mixes broken and
    good characters has its broken characters repaired alone. Text without a marker of
    mojibake keeps every character. The result may be empty: such a story is to be dropped.
    """
    repaired = _repair(text)
    return repaired.strip(), repaired != text
