"""Stories: where they end, how tokens are drawn, how they are printed."""

import dataclasses
import re
from types import SimpleNamespace

import pytest
import torch

from config import UserError
from data.tokenizer import load_tokenizer
from inference.stories import StoryPrinter, first_difference, printable, side_by_side
from models.generation import continuations, room_for_tokens, stream_tokens
from models.sampling import Sampling
from run import records
from tests.rounding import same_story
from tests.talkative import BUILTIN, DRAWN, NEVER, PROMPTS, SMALL, recomputed, talkative_model
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe


def test_stories_end_before_end_of_text_after_n_tokens_or_with_the_context():
    model = talkative_model().double()  # where no story hangs on a rounding
    long = continuations(model, PROMPTS, 1000, NEVER)
    assert [len(ids) for ids in long] == [room_for_tokens(SMALL, prompt) for prompt in PROMPTS] == [22, 24, 18, 22]
    assert continuations(model, PROMPTS, 5, NEVER) == [ids[:5] for ids in long]
    end = long[0][4]
    ended = continuations(model, PROMPTS, 1000, end)
    assert ended == [ids[: ids.index(end)] if end in ids else ids for ids in long] and len(ended[0]) < 5
    whole = list(range(24))
    assert continuations(model, [whole], 9, NEVER) == [recomputed(model, whole, 1, NEVER)]


def test_every_story_says_when_it_ends():
    told = list(stream_tokens(talkative_model(), PROMPTS, 3, NEVER))
    assert [number for number, token in told if token is None] == [0, 1, 2, 3]
    assert told.count((2, None)) == 1 and [n for n, _ in told].index(2) < told.index((0, None))


@pytest.mark.parametrize("prompts", [[], [[]], [[1], []], [[1] * 25]])
def test_prompts_that_cannot_be_read_are_refused(prompts):
    with pytest.raises(ValueError, match="between 1 and 24"):
        continuations(talkative_model(), prompts, 3, NEVER)


@pytest.mark.parametrize("sampling", [Sampling(0.0), DRAWN], ids=["greedy", "drawn"])
def test_upcycled_and_grown_models_tell_the_same_story(sampling):
    dense = talkative_model().double()  # where no draw hangs on a rounding
    moe = upcycle_to_moe(dense, 4, 2, seed=1)
    parted = talkative_model(n_experts=8).double()
    grown = scale_bilaterally(parted, 1.5, 1, 1.0, seed=1)
    for old, new in ((dense, moe), (parted, grown)):
        assert continuations(old, PROMPTS, 15, NEVER, sampling) == continuations(new, PROMPTS, 15, NEVER, sampling)
    with torch.no_grad():
        grown.blocks[0].mlp.down.weight *= 1.5
    assert continuations(parted, PROMPTS, 15, NEVER, sampling) != continuations(grown, PROMPTS, 15, NEVER, sampling)


@pytest.mark.parametrize("context_length", [2, 24])
def test_boundaries_tell_stories_as_far_as_the_context_has_room(context_length):
    config = dataclasses.replace(BUILTIN, context_length=context_length)
    model, encoding = talkative_model(config, 8), load_tokenizer("builtin")
    settings = SimpleNamespace(context_length=context_length, sample_tokens=8)
    run = SimpleNamespace(config=settings, data=SimpleNamespace(tokenizer=encoding, end_of_text=NEVER))
    prompt = encoding.encode_ordinary(records.SAMPLE_PROMPT)[-context_length:]
    model.compute_dtype = torch.bfloat16  # which must not matter: stories are told in the weights' precision
    told = records.continuation(run, model)
    model.compute_dtype = None
    expected = recomputed(model, prompt, min(8, context_length + 1 - len(prompt)), NEVER)
    assert expected != [] and same_story(model, prompt, expected, told)


def test_a_prompt_is_continued_alike_whatever_else_is_told():
    model = talkative_model(n_experts=8).double()  # where no draw hangs on a rounding
    seeds = [3, 4, 3, 5]
    together = continuations(model, PROMPTS, 15, NEVER, DRAWN, seeds)
    for prompt, seed, ids in zip(PROMPTS, seeds, together):
        assert continuations(model, [prompt], 15, NEVER, DRAWN, [seed]) == [ids]
    assert continuations(model, PROMPTS[::-1], 15, NEVER, DRAWN, seeds[::-1]) == together[::-1]
    others = continuations(model, PROMPTS, 15, NEVER, DRAWN, [seed + 1 for seed in seeds])
    assert all(a != b for a, b in zip(others, together))


def test_one_generator_for_all_rows_is_caught():
    """Negative control: then a story depends on its neighbours."""
    shared = torch.Generator()

    class Shared(Sampling):
        def choose(self, logits_BV, generators):
            return super().choose(logits_BV, [shared] * len(generators))

    model = talkative_model(n_experts=8)
    stories = []
    for prompts in (PROMPTS, PROMPTS[1:2]):
        shared.manual_seed(4)
        stories.append(continuations(model, prompts, 15, NEVER, Shared(temperature=0.05), [4] * len(prompts)))
    assert stories[0][1] != stories[1][0]


def by_definition(logits: list[float], sampling: Sampling) -> list[float]:
    """Probabilities token by token, in the order in which the settings are applied."""
    weights = torch.tensor(logits, dtype=torch.float64).div(sampling.temperature).exp().tolist()
    order = sorted(range(len(weights)), key=lambda i: -weights[i])[: sampling.top_k or len(weights)]
    total, kept, share = sum(weights[i] for i in order), [], 0.0
    for i in order:
        kept.append(i)
        share += weights[i] / total
        if share >= sampling.top_p:
            break
    return [weights[i] / sum(weights[j] for j in kept) if i in kept else 0.0 for i in range(len(weights))]


@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.5, 1e-9])
@pytest.mark.parametrize("top_k", [0, 1, 3, 7, 100])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.0])
def test_probabilities_follow_the_definition(temperature, top_k, top_p):
    logits = [0.1, 2.0, -1.0, 1.7, 0.4, -3.0, 1.1]
    sampling = Sampling(temperature, top_k, top_p)
    found = sampling.probabilities(torch.tensor([logits, logits[::-1]]))
    expected = by_definition(logits, sampling)
    assert found.tolist() == [pytest.approx(expected, abs=1e-6), pytest.approx(expected[::-1], abs=1e-6)]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = torch.tensor([[0.1, 2.0, -1.0, 1.7, 0.4, -3.0, 1.1]])
    sampling = Sampling(temperature=1.3, top_k=5)
    generator = torch.Generator().manual_seed(0)
    n = 4000
    drawn = torch.tensor([sampling.choose(logits, [generator])[0] for _ in range(n)])
    share = drawn.bincount(minlength=7) / n
    expected = sampling.probabilities(logits)[0]
    assert (share - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    assert (share - Sampling(temperature=1.0, top_k=5).probabilities(logits)[0]).abs().max() > 4 * (0.25 / n) ** 0.5


def test_cold_and_narrow_sampling_is_greedy():
    model = talkative_model().double()
    greedy = continuations(model, PROMPTS, 10, NEVER)
    for sampling in (Sampling(0.0), Sampling(1e-30), Sampling(1e-5), Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9)):
        assert continuations(model, PROMPTS, 10, NEVER, sampling, [1, 2, 3, 4]) == greedy
    assert continuations(model, PROMPTS, 10, NEVER, DRAWN, [1, 2, 3, 4]) != greedy


@pytest.mark.parametrize("sampling", [Sampling(0.0), DRAWN], ids=["greedy", "drawn"])
def test_a_model_that_computes_no_numbers_is_told_from_one_that_does(sampling):
    model = talkative_model()
    with torch.no_grad():
        model.final_norm.weight[3] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        continuations(model, [[1]], 3, NEVER, sampling)


def test_a_character_is_printed_when_its_last_byte_has_come():
    encoding = load_tokenizer("builtin")
    text, printed = " a “é” 🐈!", []
    ids = encoding.encode_ordinary(text)
    assert any("�" in encoding.decode([token]) for token in ids), "no character is split, nothing is shown"
    printer = StoryPrinter(["Once"], encoding, printed.append)
    for token in ids:
        printer.add(0, token)
    printer.add(0, None)
    assert "".join(printed) == f"Once{text}\n" and not any("�" in part for part in printed)


def test_a_character_that_stays_incomplete_is_shown_as_such():
    encoding, printed = load_tokenizer("builtin"), []
    printer = StoryPrinter(["Once"], encoding, printed.append)
    printer.add(0, encoding.encode_single_token("é".encode()[:1]))
    assert "".join(printed) == "Once"
    printer.add(0, None)
    assert "".join(printed) == "Once�\n"


def test_stories_that_are_told_at_the_same_time_are_printed_one_after_another():
    encoding, printed = load_tokenizer("builtin"), []
    a, b, c = (encoding.encode_single_token(letter) for letter in "abc")
    printer = StoryPrinter(["1", "2", "3"], encoding, printed.append, separator="|")
    for number, token in ((0, a), (1, b), (2, c), (2, None), (0, a), (0, None), (1, b), (1, None)):
        printer.add(number, token)
        if (number, token) == (0, a):
            assert "".join(printed) in ("1a", "1aa"), "the first is printed at once"
    assert "".join(printed) == "1aa|2bb|3c\n"


def test_columns_fit_the_width_and_keep_lines_and_words():
    left, right = "One two three four.\nFive\x1b[31m six.", "Seven " * 12
    for width in (40, 61):
        lines = side_by_side(left, right, ("a.pt", "x" * 60), width).split("\n")
        assert max(map(len, lines)) <= width and all(line[(width - 3) // 2 :].startswith(" │") for line in lines)
        assert re.sub(r"[\s│]+", " ", " ".join(lines[2:])).count("Seven") == 12 and "\x1b" not in "".join(lines)
        assert lines[0].endswith("x" * 10) and "…" in lines[0]
    assert printable("a\tb\nc\r\x00é") == "a\tb\nc��é"


def test_the_first_difference_is_named():
    encoding = load_tokenizer("builtin")
    cat, dog = (encoding.encode_ordinary(word) for word in (" big", " dog"))
    assert len(cat) == len(dog) == 1
    assert first_difference(cat * 3, cat * 3, encoding) == "the same, token for token (3 tokens)"
    assert (
        first_difference(cat + dog, cat * 2, encoding)
        == "they part at token 2 after the prompt: left ' dog', right ' big'"
    )
    assert first_difference(cat, cat * 2, encoding).endswith(
        "token 2 after the prompt: left the end of the story, right ' big'"
    )
