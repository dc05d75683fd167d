"""Tokenizers in files, `tokenizer.json` of Hugging Face: read for imported models, written for exported ones.

What is read is judged by what we rely on, not by its form: text comes back as it was, the same text gives the same
ids, no text becomes a special id, and there is a token that ends a text. Byte-level BPE as of GPT-2, GPT-NeoX and
SmolLM2 has these properties, and sentencepiece's BPE with byte fallback, as of Llama.
"""

from __future__ import annotations

import re
import unicodedata
import zlib
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from config import UserError
from data.tokenizer_probe import SPACE_SIGN, probe, same_text
from model_config import LARGEST

SUFFIX = ".json"
OUR_NAME = re.compile(r"tokenizer-[0-9a-f]{8}\.json")
# What ends a text where there is no token of our name.
OTHER_ENDS = ("</s>", "<|end_of_text|>", "<eos>")
FALLBACK_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
# That UTF-8 needs for characters that are assigned and not for private use.
BYTES_OF_TEXT = frozenset(range(256)) - {0xC0, 0xC1, 0xEE, 0xF1, 0xF2, *range(0xF4, 256)}


def _byte_characters() -> list[str]:
    """The character that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]


BYTE_CHARACTERS = _byte_characters()
BYTE_OF = {character: byte for byte, character in enumerate(BYTE_CHARACTERS)}


def name_of_file(path: str | Path) -> str:
    """What models and caches call a tokenizer file: by its content, so that no other passes for it.

    Raises:
        UserError: it cannot be read, or is not what its own name says.
    """
    path = Path(path)
    name = f"tokenizer-{zlib.crc32(_content(path)):08x}{SUFFIX}"
    if OUR_NAME.fullmatch(path.name) and path.name != name:
        raise UserError(f"the tokenizer {path} has changed since it was written: by its content it is {name}")
    return name


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error


class TokenizerFile:
    """A tokenizer.json with what we use of `tiktoken.Encoding`.

    `prefix`: bytes that encoding puts before every text, b"" or, with sentencepiece, b" ".
    `notes`: what was switched off or is not quite as the file says, a line each.

    Raises:
        UserError: the file cannot be used; says which property it lacks, with an example.
    """

    def __init__(self, path: str | Path, end_of_text: str):
        self.name, self.notes = name_of_file(path), []
        self._path = path
        self._tokenizer = self._read()
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        self.end_of_text = next((token for token in (end_of_text, *OTHER_ENDS) if token in ids), None)
        if self.end_of_text is None:
            raise UserError(f"the tokenizer {path} has no token {end_of_text}, which ends our stories")
        self.eot_token = ids[self.end_of_text]
        end = self._tokenizer.get_added_tokens_decoder().get(self.eot_token)
        if end is None or not end.special:
            self.notes.append(f"its {self.end_of_text} is taken as special: no text becomes it")
            self._tokenizer.add_special_tokens([AddedToken(self.end_of_text, special=True, normalized=False)])
        self.n_vocab = max(ids.values()) + 1  # ids may have gaps
        if self.n_vocab > LARGEST["vocab_size"]:
            raise UserError(
                f"the tokenizer {path} has {self.n_vocab:,} ids, at most {LARGEST['vocab_size']:,} can be used"
            )
        self._bytes = self._bytes_of_ids(ids)
        self.prefix = b""
        self.prefix = b" " if self._back("a") == " a" else b""
        self._require_that_text_comes_back()

    def _read(self) -> Tokenizer:
        """The tokenizer without what makes it cut, fill up or draw by lot."""
        content = _content(Path(self._path))
        try:
            tokenizer = Tokenizer.from_buffer(content)
        except BaseException as error:  # tokenizers raises Exception itself, and Rust what is none
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise UserError(f"{self._path} is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True
        dropout = getattr(tokenizer.model, "dropout", None)
        if dropout:
            tokenizer.model.dropout = None
            self.notes.append(f"its BPE dropout of {dropout:g} is switched off: a text always gives the same ids")
        return tokenizer

    def _bytes_of_ids(self, ids: dict[str, int]) -> list[bytes]:
        added = self._tokenizer.get_added_tokens_decoder()
        words = {token: number for token, number in ids.items() if number not in added}
        is_byte_level = all(character in BYTE_OF for token in words for character in token)
        of_ids = [b""] * self.n_vocab
        for number, token in added.items():
            of_ids[number] = token.content.encode()
        for token, number in words.items():
            fallback = FALLBACK_BYTE.fullmatch(token)
            if is_byte_level:
                of_ids[number] = bytes(BYTE_OF[character] for character in token)
            elif fallback:
                of_ids[number] = bytes([int(fallback[1], 16)])
            else:
                of_ids[number] = token.replace(SPACE_SIGN, " ").encode()
        return of_ids

    def _back(self, text: str) -> str:
        """What is left of a text that was encoded."""
        joined = b"".join(map(self.decode_single_token_bytes, self.encode_ordinary(text)))
        return joined.removeprefix(self.prefix).decode("utf-8", "replace")

    def _require_that_text_comes_back(self) -> None:
        added = self._tokenizer.get_added_tokens_decoder()
        texts = [*probe(), *(f"a {token.content} b" for token in added.values())]
        backs = [self.encode_ordinary_batch(texts), self.encode_ordinary_batch(texts)]
        if backs[0] != backs[1]:
            raise UserError(f"the tokenizer {self._path} gives one text different ids at different times")
        special = {number for number, token in added.items() if token.special}
        for text, ids in zip(texts, backs[0]):
            self.require_same(text, ids)
            taken = special.intersection(ids)
            if taken:
                raise UserError(
                    f"the tokenizer {self._path} turns {text[:40]!r} into the special id {min(taken)}; "
                    f"give one that keeps every text"
                )
        accents = "\u00e9 e\u0301"
        if self._back(accents) != accents:
            form = "NFC" if self._back(accents) == unicodedata.normalize("NFC", accents) else "NFD"
            self.notes.append(f"it rewrites accents (Unicode {form}): bits per byte are of the text as rewritten")
        if self._back(f"a{SPACE_SIGN}b") != f"a{SPACE_SIGN}b":
            self.notes.append(f"it takes the sign {SPACE_SIGN} (U+2581) for a space")
        missing = " ".join(f"0x{byte:02x}" for byte in sorted(self._missing_bytes()))
        if missing:
            self.notes.append(f"it has no token for the bytes {missing}: no story may hold a character with them")

    def require_same(self, text: str, ids: list[int]) -> None:
        """Raises UserError where `ids`, those of a text without outer white space, are not all of it."""
        joined = b"".join([self._bytes[number] for number in ids])
        back = joined.removeprefix(self.prefix).decode("utf-8", "replace")
        if same_text(back, text) or same_text(back, text.replace(SPACE_SIGN, " ")):
            return
        lost = next((each for each in text if not each.isspace() and not same_text(self._back(each), each)), None)
        if lost is None:
            place = next(
                (i for i, (one, other) in enumerate(zip(text, back)) if one != other), min(len(text), len(back))
            )
            example = (
                f"{text[max(place - 10, 0) : place + 10]!r} comes back as {back[max(place - 10, 0) : place + 10]!r}"
            )
        else:
            example = f"{lost!r} comes back as {self._back(lost)!r}"
        missing = [f"0x{byte:02x}" for byte in (lost or "").encode() if byte in self._missing_bytes()]
        why = f", for there are bytes without a token ({' '.join(missing)} of it)" if missing else ""
        raise UserError(f"the tokenizer {self._path} loses text: {example}{why}; give one that keeps every text")

    def _missing_bytes(self) -> frozenset[int]:
        return BYTES_OF_TEXT.difference(token[0] for token in self._bytes if len(token) == 1)

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode_ordinary_batch([text])[0]

    def encode_ordinary_batch(self, texts: list[str]) -> list[list[int]]:
        """Text never becomes a special token."""
        # A lone surrogate, which is no text, becomes a question mark.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: list[int]) -> str:
        """The text of ids; those beyond the tokenizer's own, which a padded embedding can give, are nothing."""
        return b"".join(self.decode_single_token_bytes(number) for number in ids).decode("utf-8", "replace")

    def decode_single_token_bytes(self, number: int) -> bytes:
        return self._bytes[number] if number < self.n_vocab else b""


def notes_of(encoding: tiktoken.Encoding | TokenizerFile) -> list[str]:
    """See `TokenizerFile`; tiktoken's have none."""
    return encoding.notes if isinstance(encoding, TokenizerFile) else []


def as_tokenizer_json(encoding: tiktoken.Encoding, end_of_text: str) -> bytes:
    """The tokenizer.json that gives every text the ids that `encoding` gives it.

    tiktoken joins any two neighbours whose union is a token, the lowest rank first. As a list of merges that is
    every split of every token, by rank; and a piece that is a token as a whole stays whole (`ignore_merges`).

    Args:
        encoding: one of ours; both have GPT-2's pre-tokenisation.
    """
    ranks = encoding._mergeable_ranks
    texts = {token: "".join(BYTE_CHARACTERS[byte] for byte in token) for token in ranks}
    merges = []
    for token, _ in sorted(ranks.items(), key=lambda item: item[1]):
        splits = ((token[:i], token[i:]) for i in range(1, len(token)))
        known = [(left, right) for left, right in splits if left in ranks and right in ranks]
        known.sort(key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        merges += [(texts[left], texts[right]) for left, right in known]
    vocabulary = {texts[token]: rank for token, rank in ranks.items()}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(end_of_text, special=True, normalized=False)])
    return tokenizer.to_str().encode()
