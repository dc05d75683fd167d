"""What a page of settings says of itself: group, help, choices and bound of each field, read from its source.

A page is a dataclass in which every field has a default and a docstring under it:

    # == Size ==
    batch_size: int = 8
    \"\"\"Sequences per step (at least 1). Halve it when out of memory.\"\"\"
    memory: Literal["full", "lean"] = "full"
    \"\"\"How memory is used.\"\"\"

The heading names the group of the fields below it, `Literal` the choices, and one of `BOUNDS` in brackets what is
asked of a number. So a help text cannot promise what is not checked.
"""

from __future__ import annotations

import ast
import inspect
import re
import typing
from dataclasses import dataclass

BOUNDS = {
    "at least 1": lambda number: number >= 1,
    "0 or more": lambda number: number >= 0,
    "above 0": lambda number: number > 0,
    "between 0 and 1": lambda number: 0 <= number <= 1,
}
HEADING = re.compile(r" *# == (.+) ==")
BOUND = re.compile(r"\(((?:at least|above|between) [^()]*|[^()]* or more)\)")


class UserError(Exception):
    """Something the user gave cannot work. Its text is the one line that the user reads."""


@dataclass(frozen=True)
class Setting:
    name: str
    default: bool | int | float | str
    group: str
    help: str
    choices: tuple
    bound: str

    @property
    def kind(self) -> type:
        return type(self.default)

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def short_help(self) -> str:
        """The first sentence, without the bound."""
        return re.split(r"(?<=\.) ", self.help)[0].replace(f" ({self.bound})", "")

    def rule_broken_by(self, value) -> str:
        """What `value`, of the right type, must be and is not; empty where nothing is wrong."""
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        return f"must be {self.bound}" if self.bound and not BOUNDS[self.bound](value) else ""


def read_settings(page: type) -> dict[str, Setting]:
    """The settings of a page by name, in its order.

    Raises:
        TypeError: a field has no docstring, no heading, or a bound that `BOUNDS` does not know.
        OSError: Python has the page's bytecode alone. (A source in a zip file is read.)
    """
    source = inspect.getsource(page)
    lines, body = source.splitlines(), ast.parse(source).body[0].body
    hints = typing.get_type_hints(page)
    found = {}
    for statement, below in zip(body, [*body[1:], None]):
        if not isinstance(statement, ast.AnnAssign):
            continue
        name = statement.target.id
        where = f"{page.__name__}.{name}"
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
            raise TypeError(f"{where} has no docstring under it")
        text = " ".join(below.value.value.split())
        bound = BOUND.search(text)
        if bound and bound[1] not in BOUNDS:
            raise TypeError(f"{where} is to be {bound[1]!r}, which is not checked; bounds are {', '.join(BOUNDS)}")
        headings = [heading[1] for line in lines[: statement.lineno] if (heading := HEADING.fullmatch(line))]
        if not headings:
            raise TypeError(f"{where} stands under no heading")
        choices = typing.get_args(hints[name])
        found[name] = Setting(name, getattr(page, name), headings[-1], text, choices, bound[1] if bound else "")
    return found
