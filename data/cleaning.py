"""One cleaning for all sources: the same stories are the same bytes, whichever file they came in.

Line ends become \\n, byte-order marks go, END_OF_TEXT parts stories wherever it is written, mojibake is repaired and
outer white space removed.

TinyStories holds stories whose UTF-8 was once read as Windows-1252, so that “ became â€œ. The damage is reversible:
encode as Windows-1252, decode as UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

END_OF_TEXT = "<|endoftext|>"
CLEANING_VERSION = 2
"""Part of the token cache's key: raise it whenever the same file gives other stories."""


def clean_stories(texts: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """What `clean_story` makes of every story in `texts`; a text may hold several, parted by END_OF_TEXT."""
    for text in texts:
        # A text may end with the separator and a line end: no story starts after it.
        *stories, last = one_form(text).split(END_OF_TEXT)
        if last.strip() or not stories:
            stories.append(last)
        yield from map(clean_story, stories)


def clean_story(text: str) -> tuple[str, bool]:
    """The story, and whether mojibake was repaired; an empty one is to be dropped.

    Good text keeps every character. A story is repaired if it holds a proof of mojibake: a broken character that
    good text does not hold (`_is_proof`), and so decodes into better text. Then, if all of it decodes, all of it is
    decoded; where it mixes broken and good characters, the proofs alone are.
    """
    text = one_form(text)
    repaired = _repair(text)
    return one_form(repaired).strip(), repaired != text


def one_form(text: str) -> str:
    """`text` with \\n at line ends, without byte-order marks, and with U+FFFD for what is no character."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\ufeff", "")
    return without_surrogates(text)


def without_surrogates(text: str) -> str:
    """`text` as it can be written as UTF-8: lone surrogates, of JSON or of a command line, become U+FFFD."""
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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
_CONTINUATION = re.escape("".join(chr(c) for c, byte in _BYTE_OF.items() if 0x80 <= byte <= 0xBF))
# The first bytes of accented letters, of punctuation and symbols, and of emoji, each
# followed by as many continuation bytes as UTF-8 asks for.
_BROKEN_CHARACTER = re.compile(f"[ÂÃ][{_CONTINUATION}]|â[{_CONTINUATION}]{{2}}|ð[{_CONTINUATION}]{{3}}")
# Good text may put these after a letter: "IRMÃ…", "MAÇÃ™", "«\xa0â\xa0»"; soft hyphens and superscripts, too.
_AFTER_A_WORD = frozenset("…‘’“”–—‚„‹›«»·\xa0\xad™©®°ªº¹²³†‡")
_BEFORE_A_WORD = frozenset("…‘“–—‚„‹«([{<\"'/¡¿-")


def _is_proof(found: re.Match) -> bool:
    """Whether a broken character cannot be good text: a word that ends in its first letter, and what may follow a word.

    Words that end in Â or Ã are written in capitals, or are that letter: their Ã follows a capital, or begins a word
    and no small letter goes on with it (but after a space that does not break, a next word may begin).
    """
    broken, text = found.group(), found.string
    if _decode_again(broken) is None:
        return False
    if not _AFTER_A_WORD.issuperset(broken[1:]):
        return True
    if broken[0] not in "ÂÃ":
        return False
    before, after = text[found.start() - 1 : found.start()], text[found.end() : found.end() + 1]
    if before.isupper():
        return False
    stands_alone = not before or before.isspace() or before in _BEFORE_A_WORD
    return not stands_alone or (after.islower() and broken[1] != "\xa0")


def _decode_again(text: str) -> str | None:
    try:
        return bytes(_BYTE_OF[ord(character)] for character in text).decode("utf-8")
    except (KeyError, UnicodeDecodeError):
        return None


def _repair(text: str) -> str:
    if text.isascii() or not any(map(_is_proof, _BROKEN_CHARACTER.finditer(text))):
        return text
    whole = _decode_again(text)
    if whole is not None:
        return whole
    return _BROKEN_CHARACTER.sub(lambda found: _decode_again(found[0]) if _is_proof(found) else found[0], text)
