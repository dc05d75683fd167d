"""One random stream per parameter, so that a result does not depend on the order of drawing."""

from __future__ import annotations

import zlib

import torch


def parameter_generator(seed: int, name: str, device: torch.device | str) -> torch.Generator:
    """The stream called `name` under `seed`; other names have others.

    A name says what is drawn as well as for which parameter: upcycling and two growths in a row get the same seed, and
    what one draws must not come again in the next.
    """
    return torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
