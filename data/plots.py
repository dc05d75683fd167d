"""The language of data/builtin/: word lists and plots in plain text, read here and told by `builtin_stories`.

A line that begins with # is a comment, one that begins with @ an instruction. All others are phrasings: neighbouring
lines are one beat of the story, of which one phrasing is told.

    @ color = colors                    an entry of a list
    @ skill, failure = skills           a row of a table; `skills.failure` is one column of it
    @ first, second = two landmarks     two different entries
    @ helper = stranger helpers         someone who is "a farmer" at first (helper.kind), then "the farmer"
    @ she, her = she, her | he, him     one of what is written here; "..." is that alone
    @ if chance 0.5                     also: animals, children, `thing is snowman`; then @ else if, @ else, @ end
    @ maybe                             the next beat is told in two stories out of three
    @ paragraph, @ opening              a new paragraph; the beats of opening.txt

In a phrasing, {toy} is what was chosen, {a toy} has its article, {the helper.kind} the definite one, {any games} is
chosen on the spot, {sad|glad} too. {A toy} and {Toy} begin with a capital. {he}, {him} and {his} are the hero.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

# The sound of the first letter decides, not its spelling: "a unicorn", "an honest fox".
ARTICLE_EXCEPTIONS = {"unicorn": "a", "honest": "an"}
SLOT = re.compile(r"\{([^}]*)\}")

Words = dict[str, Sequence]


class Character(NamedTuple):
    """Someone with a name and pronouns; `kind` is "girl", "boy", an animal, or a relation."""

    name: str
    kind: str
    he: str

    @property
    def him(self) -> str:
        return "her" if self.he == "she" else "him"

    @property
    def his(self) -> str:
        return "her" if self.he == "she" else "his"

    def __str__(self) -> str:
        return self.name


class Scene:
    """What a story has chosen and told so far.

    Args:
        random: gives numbers in [0, 1); every choice is made by it, so that the same numbers tell the same story.
        names: the cast, with what else phrasings may call by name.
    """

    def __init__(self, random: Callable[[], float], names: dict):
        self.random, self.names, self.paragraphs = random, names, [[]]

    def pick(self, entries: Sequence):
        return entries[int(self.random() * len(entries))]

    def meant(self, word: str | Character) -> str | Character:
        """Who of the cast `word` names; any other word is itself."""
        named = self.names.get(word)
        return named if isinstance(named, Character) else word

    def text(self) -> str:
        return "\n".join(" ".join(sentences) for sentences in self.paragraphs)


Step = Callable[[Scene], None]


def with_article(phrase: str) -> str:
    first = phrase.split(" ", 1)[0]
    return f"{ARTICLE_EXCEPTIONS.get(first, 'an' if first[0] in 'aeiou' else 'a')} {phrase}"


def definite(phrase: str) -> str:
    """`phrase`, which starts with an indefinite article, with the definite one."""
    return "the " + phrase.split(" ", 1)[1]


ARTICLES = {"a": with_article, "the": definite}


def read_words(path: Path) -> Words:
    """The lists of a file, and its tables as tuples of rows, with every column `table.column` as a list of its own."""
    words: Words = {}
    for section in re.split(r"^\[", _without_comments(path), flags=re.M)[1:]:
        head, _, body = section.partition("]\n")
        name, _, columns = head.partition(": ")
        if not columns:
            words[name] = tuple(entry.strip() for entry in body.split(","))
            continue
        words[name] = rows = tuple(tuple(line.split(" | ")) for line in body.strip().split("\n"))
        words.update({f"{name}.{column}": entries for column, entries in zip(columns.split(" | "), zip(*rows))})
    return words


def read_plot(path: Path, words: Words, parts: dict[str, Step]) -> Step:
    """What tells the plot of a file. `parts`: the instructions that stand for the beats of another file.

    Raises:
        ValueError: a line is none of this language; names file and line.
    """
    root: list[Step] = []
    stack, beat, is_maybe = [root], [], False
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], 1):
        line = line.strip()
        try:
            if line and line[0] not in "@#":
                beat.append(Phrasing(line, words))
                continue
            if beat:
                stack[-1].append(_beat(beat, is_maybe))
                beat, is_maybe = [], False
            if not line or line[0] == "#":
                continue
            order = line[1:].strip()
            if order == "maybe":
                is_maybe = True
            elif order.startswith("if "):
                branches = [(_condition(order[3:]), [])]
                stack[-1].append(_branching(branches))
                stack += [branches, branches[-1][1]]
            elif order.startswith("else"):
                branches = stack[-2]
                condition = _condition(order.removeprefix("else if ")) if order != "else" else lambda scene: True
                branches.append((condition, []))
                stack[-1] = branches[-1][1]
            elif order == "end" and len(stack) > 1:
                del stack[-2:]
            elif " = " in order:
                stack[-1].append(_choice(*order.split(" = ", 1), words))
            else:
                stack[-1].append(parts[order])
        except (KeyError, ValueError, IndexError) as error:
            raise ValueError(f"{path} line {number}: {line!r} is not understood ({error})") from error
    if len(stack) > 1:
        raise ValueError(f"{path}: an @ if has no @ end")
    return lambda scene: _tell(root, scene)


class Phrasing:
    """A sentence with slots. What it chooses on the spot is chosen even where another phrasing is told."""

    def __init__(self, line: str, words: Words):
        self.form = SLOT.sub("{}", line)
        self.draws: list[Sequence] = []
        self.slots = [self._slot(inside, words) for inside in SLOT.findall(line)]

    def _slot(self, inside: str, words: Words) -> Callable[[dict, list], str]:
        is_capital = inside[:1].isupper()
        head, _, rest = (inside[0].lower() + inside[1:]).partition(" ")
        article = ARTICLES.get(head)
        name = rest if article else f"{head} {rest}".strip()
        name, _, attribute = name.partition(".") if not name.startswith("any ") else (name, "", "")
        if name.startswith("any ") or "|" in name:
            number = len(self.draws)
            self.draws.append(words[name[4:]] if name.startswith("any ") else name.split("|"))
            name = None

        def fill(names: dict, drawn: list) -> str:
            value = drawn[number] if name is None else names[name]
            value = getattr(value, attribute) if attribute else str(value)
            value = article(value) if article else value
            return value[0].upper() + value[1:] if is_capital else value

        return fill


def _beat(phrasings: list[Phrasing], is_maybe: bool) -> Step:
    def tell(scene: Scene) -> None:
        drawn = [[scene.pick(entries) for entries in phrasing.draws] for phrasing in phrasings]
        if is_maybe and scene.random() >= 0.67:
            return
        index = int(scene.random() * len(phrasings))
        chosen = phrasings[index]
        slots = (fill(scene.names, drawn[index]) for fill in chosen.slots)
        scene.paragraphs[-1].append(chosen.form.format(*slots))

    return tell


def _condition(text: str) -> Callable[[Scene], bool]:
    head, _, tail = text.partition(" ")
    if head == "chance":
        share = float(tail)
        return lambda scene: scene.random() < share
    if tail.startswith("is "):
        return lambda scene: scene.names[head] == scene.meant(tail[3:])
    if text not in ("animals", "children"):
        raise ValueError(f"no condition {text}")
    return lambda scene: scene.names["animals"] == (text == "animals")


def _branching(branches: list[tuple[Callable[[Scene], bool], list[Step]]]) -> Step:
    def tell(scene: Scene) -> None:
        for condition, steps in branches:
            if condition(scene):
                return _tell(steps, scene)

    return tell


def _choice(names: str, source: str, words: Words) -> Step:
    names = names.split(", ")
    how, _, listed = source.partition(" ")
    if how == "two":
        entries = words[listed]

        def choose(scene: Scene) -> tuple:
            first = int(scene.random() * len(entries))
            second = int(scene.random() * (len(entries) - 1))
            return entries[first], entries[second + (second >= first)]
    elif how == "stranger":

        def choose(scene: Scene) -> tuple:
            kind, he = scene.pick(words[listed])
            return (Character(definite(kind), kind, he),)
    elif source[0] == '"':
        alone = (source.strip('"'),)

        def choose(scene: Scene) -> tuple:
            return alone
    else:
        options = words[source] if "|" not in source else [tuple(each.split(", ")) for each in source.split(" | ")]

        def choose(scene: Scene) -> tuple:
            chosen = scene.pick(options)
            return chosen if isinstance(chosen, tuple) else (chosen,)

    def apply(scene: Scene) -> None:
        scene.names.update(zip(names, map(scene.meant, choose(scene)), strict=True))

    return apply


def _tell(steps: list[Step], scene: Scene) -> None:
    for step in steps:
        step(scene)


def _without_comments(path: Path) -> str:
    return re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.M)
