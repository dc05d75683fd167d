"""Stories of our own, for training where TinyStories cannot be had: told from the words and plots in data/builtin/.

The same numbers give the same stories on every machine and Python version: all choices
come from `random.Random.random`, whose stream Python promises to keep.
"""

from __future__ import annotations

import functools
import hashlib
import random
from pathlib import Path

from data.plots import Character, Scene, Step, Words, read_plot, read_words

FOLDER = Path(__file__).with_name("builtin")
# Every twentieth story is held out.
VALID_STRIDE = 20


def builtin_stories(n_stories: int = 24_000, seed: int = 0) -> list[str]:
    """The first `n_stories` distinct stories of `seed`.

    Raises:
        ValueError: `n_stories` is negative, or the plots do not yield so many stories.
    """
    if n_stories < 0:
        raise ValueError(f"n_stories is {n_stories}, must be 0 or more")
    rng = random.Random(seed)
    words, plots = read_builtin()
    stories: dict[str, None] = {}  # in the order of telling, each once
    attempts = 0
    while len(stories) < n_stories:
        # Repeats are rare, so this many mean that the plots are told out.
        if attempts > 2 * n_stories + 1_000:
            raise ValueError(f"only {len(stories)} distinct stories in {attempts} attempts, {n_stories} wanted")
        scene = cast(rng.random, words)
        scene.pick(list(plots.values()))(scene)
        stories[scene.text()] = None
        attempts += 1
    return list(stories)


def builtin_split(n_stories: int = 24_000, seed: int = 0) -> tuple[list[str], list[str]]:
    """Training and held-out stories; no text is in both.

    Raises:
        ValueError: as `builtin_stories`.
    """
    stories = builtin_stories(n_stories, seed)
    train = [story for index, story in enumerate(stories) if index % VALID_STRIDE]
    return train, stories[::VALID_STRIDE]


@functools.cache
def read_builtin() -> tuple[Words, dict[str, Step]]:
    """The words, and what tells each plot, by its name."""
    words = read_words(FOLDER / "words.txt")
    parts = {name: _aside(read_plot(FOLDER / f"{name}.txt", words, {})) for name in ("opening", "outdoors", "bedtime")}
    parts["paragraph"] = lambda scene: scene.paragraphs.append([])
    paths = sorted((FOLDER / "plots").glob("*.txt"))
    return words, {path.stem[3:]: read_plot(path, words, parts) for path in paths}


def builtin_checksum() -> str:
    """Changes with every text and module that the stories follow from; these are read much faster than told."""
    checksum = hashlib.blake2b(digest_size=16)
    for path in [*sorted(FOLDER.rglob("*.txt")), Path(__file__), Path(__file__).with_name("plots.py")]:
        checksum.update(path.name.encode() + b"\0" + path.read_bytes())
    return checksum.hexdigest()


def cast(number, words: Words) -> Scene:
    """A scene with a hero, a friend and a grown-up, chosen once: a plot can only tell a coherent story about them."""
    scene = Scene(number, {})
    animals = number() < 0.35
    hero = _someone(scene, words, animals)
    friend = _someone(scene, words, animals, other_than=hero)
    kind, name, he = scene.pick(words["grownups"])
    scene.names |= {
        "animals": animals,
        "hero": hero,
        "he": hero.he,
        "him": hero.him,
        "his": hero.his,
        "friend": friend,
        "grownup": Character(name, kind, he),
        "trait": scene.pick(words["traits"]),
        # How the friend is called when first met.
        "friend_called": f"{hero.his} friend {friend}" + (f" the {friend.kind}" if animals else ""),
        "hand": "paw" if animals else "hand",
        "finger": "claw" if animals else "finger",
        "everyone": "all the animals" if animals else "all the children",
    }
    return scene


def _someone(scene: Scene, words: Words, animals: bool, other_than: Character | None = None) -> Character:
    she = scene.random() < 0.5
    names = words[("animal_girls" if she else "animal_boys") if animals else ("girls" if she else "boys")]
    while True:
        name = scene.pick(names)
        kind = scene.pick(words["animals"]) if animals else ("girl" if she else "boy")
        if other_than is None or (name != other_than.name and not (animals and kind == other_than.kind)):
            return Character(name, kind, "she" if she else "he")


def _aside(step: Step) -> Step:
    """`step` told without what it chooses being known afterwards."""

    def tell(scene: Scene) -> None:
        names = scene.names
        scene.names = dict(names)
        step(scene)
        scene.names = names

    return tell
