"""The tokenizers: `builtin`, shipped with the project, `gpt2`, downloaded once, and those in files."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from pathlib import Path

import tiktoken

from config import UserError
from data import network
from data.cleaning import END_OF_TEXT
from data.tokenizer_file import SUFFIX, TokenizerFile, name_of_file
from durable_files import beside

BUILTIN_RANKS_PATH = Path(__file__).parent / "builtin" / "builtin_4096.tiktoken"
# GPT-2's pre-tokenisation: contractions, then words, numbers and signs with their leading space.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# What tiktoken fetches for gpt2, and the SHA-256 that it demands of each file.
GPT2_FILES = {
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
PROBE_SECONDS = 4.0
DOWNLOAD_SECONDS = 60.0


class TokenizerUnavailable(UserError):
    """The tokenizer's files are neither cached nor to be had from the network."""


def load_tokenizer(name: str) -> tiktoken.Encoding | TokenizerFile:
    """The tokenizer `name`: "builtin" has 4,097 ids, "gpt2" 50,257; the last is END_OF_TEXT. Or the path of a .json.

    Raises:
        UserError: the file cannot be used.
        TokenizerUnavailable: gpt2 is not cached and cannot be downloaded; takes 4 s at most
            where the network is silent, 64 s where the download stalls.
        ValueError: no tokenizer has that name.
    """
    if name == "builtin":
        ranks = read_ranks(BUILTIN_RANKS_PATH)
        return tiktoken.Encoding(
            name="builtin_4096",
            pat_str=GPT2_PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: len(ranks)},
        )
    if name == "gpt2":
        return _load_gpt2()
    if name.endswith(SUFFIX):
        return TokenizerFile(name, END_OF_TEXT)
    raise ValueError(f"no tokenizer is named {name!r}; there are builtin and gpt2")


def find_tokenizer(given: str, near: str | Path) -> str:
    """A name, or the path of a tokenizer file: as it was given, or, where there is none, of that name beside a model.

    Args:
        near: a model, or the folder of models; where these are links, the files that they lead to count, too.
    """
    near = Path(near)
    if not given.endswith(SUFFIX) or Path(given).exists():
        return given
    if near.is_file():
        return str(beside(near, given))
    links = (path for path in sorted(near.iterdir()) if path.is_symlink()) if near.is_dir() else ()
    places = (near / given, *(beside(link, given) for link in links))
    return str(next((path for path in places if path.exists()), places[0]))


def tokenizer_name(given: str) -> str:
    """What models and caches call the tokenizer that was given by name or path. Raises UserError as `load_tokenizer`."""
    return name_of_file(given) if given.endswith(SUFFIX) else given


def read_ranks(path: Path) -> dict[bytes, int]:
    """The token of each rank in a file of tiktoken's format, lines of "base64 rank"."""
    # Not tiktoken's own loader: it copies local files into its cache, keyed by the path,
    # and would go on serving the copy after the file has changed.
    lines = path.read_bytes().splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(bytes.split, lines)}


def write_ranks(ranks: dict[bytes, int], path: Path) -> None:
    """Writes what `read_ranks` reads, in the order of the ranks."""
    by_rank = sorted(ranks.items(), key=lambda item: item[1])
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in by_rank))


def _load_gpt2() -> tiktoken.Encoding:
    url = next(iter(GPT2_FILES))
    if not _gpt2_is_cached() and not network.reachable(url, PROBE_SECONDS):
        raise TokenizerUnavailable(_advice(f"is not cached, and {url} cannot be reached"))
    try:
        # tiktoken downloads without a time limit of its own.
        return network.within(DOWNLOAD_SECONDS, lambda: tiktoken.get_encoding("gpt2"))
    except TimeoutError:
        raise TokenizerUnavailable(_advice(f"did not arrive within {DOWNLOAD_SECONDS:g} s")) from None
    except (OSError, ValueError) as error:  # network, disk or HTTP status; a wrong hash
        raise TokenizerUnavailable(_advice(f"could not be downloaded: {' '.join(str(error).split())}")) from error


def _advice(what: str) -> str:
    names = " and ".join(hashlib.sha1(url.encode()).hexdigest() for url in GPT2_FILES)
    return (
        f"the gpt2 tokenizer {what}; connect once to download it, or set TIKTOKEN_CACHE_DIR to a folder "
        f"that holds tiktoken's files {names}, or train with --tokenizer builtin"
    )


def _gpt2_is_cached() -> bool:
    """Whether tiktoken will find both files, undamaged, where it looks for them."""
    folder = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if folder is None:
        folder = os.path.join(tempfile.gettempdir(), "data-gym-cache")
    if folder == "":  # tiktoken's way to turn its cache off
        return False
    for url, sha256 in GPT2_FILES.items():
        try:
            contents = Path(folder, hashlib.sha1(url.encode()).hexdigest()).read_bytes()
        except OSError:
            return False
        if hashlib.sha256(contents).hexdigest() != sha256:
            return False
    return True
