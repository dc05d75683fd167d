"""Tokenizers in files, `tokenizer.json` of Hugging Face: read for imported models, written for exported ones.

What is read has to be a byte-level BPE, as GPT-2, GPT-NeoX and Pythia have it, with `<|endoftext|>`.
"""

from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from config import UserError

SUFFIX = ".json"
LARGEST_VOCABULARY = 1 << 16  # tokens are kept as uint16
OUR_NAME = re.compile(r"tokenizer-[0-9a-f]{8}\.json")


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
    try:
        name = f"tokenizer-{zlib.crc32(path.read_bytes()):08x}{SUFFIX}"
    except OSError as error:
        raise UserError(f"the tokenizer {path} cannot be read: {error.strerror}") from error
    if OUR_NAME.fullmatch(path.name) and path.name != name:
        raise UserError(f"the tokenizer {path} has changed since it was written: by its content it is {name}")
    return name


class TokenizerFile:
    """A tokenizer.json with what we use of `tiktoken.Encoding`. Text never becomes a special token.

    Raises:
        UserError: the file cannot be used.
    """

    def __init__(self, path: str | Path, end_of_text: str):
        self.name = name_of_file(path)
        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises Exception itself
            raise UserError(f"{path} is no tokenizer.json: {' '.join(str(error).split())[:200]}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if end_of_text not in ids:
            raise UserError(f"the tokenizer {path} has no token {end_of_text}, which ends our stories")
        self.eot_token = ids[end_of_text]
        self.n_vocab = max(ids.values()) + 1  # ids may have gaps
        if self.n_vocab > LARGEST_VOCABULARY:
            raise UserError(
                f"the tokenizer {path} has {self.n_vocab:,} ids, at most {LARGEST_VOCABULARY:,} can be used"
            )
        if json.loads(self._tokenizer.to_str())["model"]["type"] != "BPE":
            raise UserError(f"the tokenizer {path} is no BPE, as GPT-2's and GPT-NeoX's are")
        added = {token.content for token in self._tokenizer.get_added_tokens_decoder().values()}
        self._bytes = [b""] * self.n_vocab
        for token, number in ids.items():
            if token in added:
                self._bytes[number] = token.encode()
            elif all(character in BYTE_OF for character in token):
                self._bytes[number] = bytes(BYTE_OF[character] for character in token)
            else:
                raise UserError(
                    f"the tokenizer {path} is no byte-level BPE: its token {token!r} is made of other signs"
                )

    def encode_ordinary(self, text: str) -> list[int]:
        return self.encode_ordinary_batch([text])[0]

    def encode_ordinary_batch(self, texts: list[str]) -> list[list[int]]:
        # A lone surrogate, which is no text, becomes a question mark.
        texts = [text.encode("utf-8", "replace").decode() for text in texts]
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts, add_special_tokens=False)]

    def encode_single_token(self, token: str) -> int:
        """Raises KeyError where there is no such token."""
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise KeyError(token)
        return number

    def decode(self, ids: list[int]) -> str:
        """The text of ids; those beyond the tokenizer's own, which a padded embedding can give, are nothing."""
        return b"".join(self.decode_single_token_bytes(number) for number in ids).decode("utf-8", "replace")

    def decode_single_token_bytes(self, number: int) -> bytes:
        return self._bytes[number] if number < self.n_vocab else b""


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
