"""Which operators have a kernel on MPS: by the list from which torch itself is generated, and which its wheel holds."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torchgen

LIST = Path(torchgen.__file__).parent / "packaged/ATen/native/native_functions.yaml"
# By operators that have kernels themselves, or by none: on the device on which the tensor is.
COMPOSITE = {"CompositeImplicitAutograd", "CompositeExplicitAutograd", "CompositeExplicitAutogradNonFunctional"}


def without_kernel(operators: Iterable[str]) -> list[str]:
    """Those of the operators, as "mm.out", that MPS cannot compute, sorted."""
    return sorted(operator for operator in operators if not has_mps_kernel(operator))


def has_mps_kernel(operator: str) -> bool:
    entry = entries().get(operator)
    if entry is None:
        return False
    keys = set(re.findall(r"^    ([\w, ]+):", entry, re.M))
    keys = {key.strip() for group in keys for key in group.split(",")}
    delegate = re.search(r"^  structured_delegate: (\S+)", entry, re.M)
    if keys & {"MPS", *COMPOSITE} or (delegate and has_mps_kernel(delegate[1])):
        return True
    return not delegate and "  dispatch:" not in entry  # composite of itself


@cache
def entries() -> dict[str, str]:
    """The text of each operator's entry, by its name and overload."""
    text = LIST.read_text(encoding="utf-8")
    return {entry[: entry.index("(")]: entry for entry in re.split(r"^- func: ", text, flags=re.M)[1:]}
