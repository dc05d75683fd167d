"""The built-in stories: many, distinct, the same everywhere, and proper English."""

import hashlib
import random
import re
from collections import Counter

import pytest

from data.builtin_stories import builtin_split, builtin_stories, cast, read_builtin
from data.plots import read_plot

# Of the default stories joined by newlines. Changes with every change of the words or plots;
# the shipped tokenizer is then to be trained again.
SHA256_OF_DEFAULT = "fc85470838790c4501b0504a09f5fa3c4f205ae215ff1e74d06281566b1a9939"


@pytest.fixture(scope="module")
def stories() -> list[str]:
    return builtin_stories()


@pytest.fixture(scope="module")
def split() -> tuple[list[str], list[str]]:
    return builtin_split()


def offenders(stories: list[str], pattern: str) -> list[str]:
    return [match.group() for story in stories for match in re.finditer(pattern, story)][:5]


def test_training_has_20_000_distinct_stories_and_none_of_the_held_out_ones(split):
    train, valid = split
    assert len(set(train)) == len(train) >= 20_000
    assert len(set(valid)) == len(valid) >= 1_000
    assert not set(train) & set(valid)


def test_both_splits_tell_every_kind_of_story(split):
    train, valid = split
    # The words that give each plot away; a stride in step with the plots would miss some.
    telltales = (
        "map",
        "race",
        "storm",
        "seed",
        "promise",
        "birthday",
        "dark",
        "rain",
        "lost",
        "baby",
        "mistake",
        "mend",
    )
    for part in (train[:2_000], valid):
        for telltale in telltales:
            assert sum(telltale in story for story in part) > 10, telltale


def test_default_stories_are_the_pinned_ones(stories):
    assert hashlib.sha256("\n".join(stories).encode()).hexdigest() == SHA256_OF_DEFAULT


def test_fewer_stories_are_the_first_ones(stories):
    assert builtin_stories(50) == stories[:50]


def test_another_seed_tells_other_stories(stories):
    assert not set(builtin_stories(200, seed=1)) & set(stories)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="-1"):
        builtin_stories(-1)


def test_plots_that_are_told_out_are_reported(monkeypatch, tmp_path):
    (tmp_path / "short.txt").write_text("One.\nTwo.\n")
    words, _ = read_builtin()
    short = read_plot(tmp_path / "short.txt", words, {})
    monkeypatch.setattr("data.builtin_stories.read_builtin", lambda: (words, {"short": short}))
    with pytest.raises(ValueError, match="only 2 distinct stories"):
        builtin_stories(3)


def test_lengths_are_those_of_tinystories(stories):
    lengths = [len(story.split()) for story in stories]
    assert min(lengths) >= 80
    assert max(lengths) <= 220


def test_characters_and_spacing(stories):
    assert all(story.isascii() for story in stories)
    # Double spaces, spaces at an end, empty lines, unfilled braces, the separator, a lone ".." or ",.".
    assert offenders(stories, r"  |(?m: $|^ )|\n\n|[{}<>|]|[.,!?]{2}| [.,!?]") == []
    assert offenders(stories, r"\b(?:None|True|False)\b|object at 0x") == []


def test_quotes_are_balanced_in_every_paragraph(stories):
    paragraphs = [paragraph for story in stories for paragraph in story.split("\n")]
    assert [paragraph for paragraph in paragraphs if paragraph.count('"') % 2][:5] == []
    assert [paragraph for paragraph in paragraphs if not re.search(r'[.!?]"?$', paragraph)][:5] == []


def test_articles_fit_the_next_word(stories):
    assert offenders(stories, r"\b[Aa] (?!unicorn|uni|use|one\b)[aeiou]\w*") == []
    assert offenders(stories, r"\b[Aa] (?:honest|hour)\w*") == []
    assert offenders(stories, r"\b[Aa]n (?!honest|hour)[^aeiou]\w*") == []
    assert offenders(stories, r"\b[Aa]n (?:unicorn|uni|use|one\b)\w*") == []


def test_sentences_begin_with_capitals_and_words_do_not_repeat(stories):
    assert offenders(stories, r"(?:^|\n|[.!?] )[a-z]\w*") == []
    assert offenders(stories, r"\b(?!had\b|that\b)([a-z]+) \1\b") == []


def test_characters_keep_their_pronouns():
    rng = random.Random(3)
    # The plots without strangers, babies and animals in need.
    words, tellers = read_builtin()
    plots = ("lost_toy", "sharing_food", "learning_skill", "rainy_day", "promise_kept", "mistake_and_apology")
    plots += ("planting_seed", "big_storm", "surprise_party", "stage_fright", "new_food", "building_together")
    others = {"he": r"\b(?:[Ss]he|[Hh]ers?)\b", "she": r"\b(?:[Hh]e|[Hh]is|[Hh]im)\b"}
    told = 0
    for _ in range(2_000):
        scene = cast(rng.random, words)
        hero, friend, grownup = (scene.names[who] for who in ("hero", "friend", "grownup"))
        # A cast of boys and men, or of girls and women, has no word for the others.
        if hero.he == friend.he == grownup.he:
            tellers[scene.pick(plots)](scene)
            assert re.findall(others[hero.he], scene.text()) == [], scene.text()
            told += 1
    assert told > 300


def test_variety(stories):
    openings = Counter(story.split(". ")[0] for story in stories)
    once = sum(story.startswith("Once upon a time") for story in stories) / len(stories)
    words = {word for story in stories for word in re.findall(r"[a-z]+", story.lower())}
    assert len(read_builtin()[1]) >= 12
    assert len(openings) > 15_000
    assert len({story[:8] for story in stories}) > 300
    assert 0.3 < once < 0.45
    assert len(words) >= 1_800


def test_every_plot_tells_many_stories():
    rng = random.Random(0)
    words, plots = read_builtin()
    for name, tell in plots.items():
        told = set()
        for _ in range(100):
            scene = cast(rng.random, words)
            tell(scene)
            # Without the opening, which is shared by all plots.
            told.add(scene.text().split("\n", 1)[1])
        assert len(told) == 100, name


@pytest.mark.parametrize("line", ["{any colurs}", "@ toy = tois", "@ if chanse 0.5", "@ paragraf", "@ end"])
def test_a_mistake_in_a_plot_names_its_file_and_line(tmp_path, line):
    words, _ = read_builtin()
    path = tmp_path / "plot.txt"
    path.write_text(f"A cow.\n\n{line}\n")
    with pytest.raises(ValueError, match="plot.txt line 3"):
        read_plot(path, words, {})


def test_a_word_that_was_not_chosen_is_noticed_when_the_plot_is_told(tmp_path):
    words, _ = read_builtin()
    (tmp_path / "plot.txt").write_text("The {toi} was gone.\n")
    with pytest.raises(KeyError, match="toi"):
        read_plot(tmp_path / "plot.txt", words, {})(cast(random.Random(0).random, words))
