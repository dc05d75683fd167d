"""One random stream per parameter, so that a result does not depend on the order of drawing."""

from __future__ import annotations

import zlib

import torch


def parameter_generator(seed: int, name: str, device: torch.device | str) -> torch.Generator:
    """The stream of the parameter `name` under `seed`; parameters with other names have others."""
    return torch.Generator(device).manual_seed(seed + zlib.crc32(name.encode()))
