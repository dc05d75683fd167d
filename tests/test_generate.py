"""The KV cache against computing everything again, sampling, and `python generate.py`."""

import dataclasses
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, normalizers

import generate
from config import ModelConfig, UserError
from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.tokenizer_file import as_tokenizer_json
from inference import checkpoint
from inference.stories import StoryPrinter, first_difference, printable, side_by_side
from models import Transformer, experts, save_model
from models.generation import continuations, room_for_tokens, stream_tokens
from models.kv_cache import KVCache
from models.moe import MoE
from models.sampling import Sampling
from phases import phase_of
from run import records
from tests.rounding import require_clear_choices, same_story
from training.self_check import check_model
from transfer.simple_growth import scale_bilaterally
from transfer.upcycling import upcycle_to_moe

ROOT = Path(__file__).parent.parent
SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, context_length=24)
BUILTIN = dataclasses.replace(SMALL, vocab_size=4097, context_length=32, tokenizer="builtin")
NEVER = -1
EXPERTS = {"dense": 0, "moe": 8}
PROMPTS = [[1, 2, 3], [7], [5, 6, 7, 8, 9, 10, 11], [3, 2, 1]]
DRAWN = Sampling(temperature=0.05)  # where logits are as small as those of a random model


@torch.no_grad()
def recomputed(model: Transformer, prompt: list[int], n_tokens: int, end_of_text: int) -> list[int]:
    """What `continuations` finds for one prompt, without a cache: the definition."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n_tokens:
        hidden_BTD, _ = model.hidden(torch.tensor([ids], device=model.device))
        token = model.unembed(hidden_BTD[0, -1]).argmax().item()
        if token == end_of_text:
            break
        ids.append(token)
    return ids[len(prompt) :]


def talkative_model(config: ModelConfig = SMALL, n_experts: int = 0):
    """Random, with weights so large that its stories do not repeat one token for ever."""
    model = check_model(dataclasses.replace(config, n_experts=n_experts))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks") and parameter.ndim > 1:
                parameter.mul_(3)
    return model


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))


# ---- the cache


@torch.no_grad()
def largest_drift(model, parts: list[int]) -> float:
    """Of the hidden states when a text is read in these parts, from those when it is read at once."""
    text = tokens(length=sum(parts))
    require_clear_choices(model, text)
    whole, _ = model.hidden(text)
    cache = model.new_cache(2, sum(parts))
    read = [model.hidden(part, cache)[0] for part in text.split(parts, dim=1)]
    return (torch.cat(read, dim=1) - whole).abs().max().item()


TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-11}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", EXPERTS)
def test_a_text_read_in_parts_is_the_text_read_at_once(kind, dtype):
    model = talkative_model(n_experts=EXPERTS[kind]).to(dtype)
    for parts in ([1] * 24, [5] + [1] * 19, [3, 4, 1, 16], [24]):
        assert largest_drift(model, parts) < TOLERANCE[dtype], parts


def positions_start_again(extend):
    def broken(cache, n_tokens):
        extend(cache, n_tokens)
        return tuple(table[:n_tokens].expand(1, 1, -1, -1) for table in cache.rope)

    return broken


def positions_are_one_off(extend):
    def broken(cache, n_tokens):
        was_first = not any(cache.lengths)
        rope = extend(cache, n_tokens)
        return rope if was_first else tuple(table[cache.position_BT - 1].unsqueeze(1) for table in cache.rope)

    return broken


def the_first_token_is_forgotten(extend):
    def broken(cache, n_tokens):
        if any(cache.lengths):
            cache.kept_L2BCGK[:, :, :, 0] = 0
        return extend(cache, n_tokens)

    return broken


def padding_is_seen(extend):
    def broken(cache, n_tokens):
        rope = extend(cache, n_tokens)
        cache.mask_B1TS = None
        return rope

    return broken


@pytest.mark.parametrize("fault", [positions_start_again, positions_are_one_off, the_first_token_is_forgotten])
def test_a_broken_cache_is_caught(fault, monkeypatch):
    """Negative controls of the test above, and of the tokens below."""
    model = talkative_model()
    monkeypatch.setattr(KVCache, "extend", fault(KVCache.extend))
    assert largest_drift(model, [5] + [1] * 19) > 0.1
    told = recomputed(model, [1, 2, 3], 20, NEVER)
    assert not same_story(model, [1, 2, 3], told, continuations(model, [[1, 2, 3]], 20, NEVER)[0])


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", EXPERTS)
def test_prompts_of_different_lengths_have_the_tokens_that_recomputing_finds_for_each(kind, dtype):
    model = talkative_model(n_experts=EXPERTS[kind]).to(dtype)
    found = continuations(model, PROMPTS, 18, NEVER)
    for prompt, told in zip(PROMPTS, found):
        assert same_story(model, prompt, recomputed(model, prompt, 18, NEVER), told)
    assert sum(len(set(ids)) for ids in found) > 24, "stories of a few words would show little"


def test_a_lower_precision_is_cached_in_that_precision():
    model = talkative_model()
    exact = continuations(model, PROMPTS, 18, NEVER)
    model.compute_dtype = torch.bfloat16
    assert model.new_cache(1, 4).kept_L2BCGK.dtype == torch.bfloat16
    assert largest_drift(model, [5] + [1] * 19) < 0.2, "of hidden states whose size is 1"
    assert [ids[0] for ids in continuations(model, PROMPTS, 18, NEVER)] == [ids[0] for ids in exact]


def test_padding_that_is_seen_is_caught(monkeypatch):
    """Negative control: without its mask a short prompt would see what stands behind it."""
    model = talkative_model()
    monkeypatch.setattr(KVCache, "extend", padding_is_seen(KVCache.extend))
    found = continuations(model, PROMPTS, 18, NEVER)
    pairs = [(recomputed(model, prompt, 18, NEVER), told) for prompt, told in zip(PROMPTS, found)]
    assert not all(same_story(model, prompt, *pair) for prompt, pair in zip(PROMPTS, pairs))


def test_training_computes_what_it_computed_before_there_was_a_cache():
    """Bit for bit: the plain path is one causal attention over tables from position 0."""
    model = talkative_model()
    batch = tokens()
    with torch.no_grad():
        cached, _ = model.hidden(batch, model.new_cache(2, 24))
        assert torch.equal(model.hidden(batch)[0], cached)


def test_no_more_positions_than_there_is_room_for():
    model = talkative_model()
    with pytest.raises(ValueError, match="context length is 24"):
        model.new_cache(1, 25)
    cache = model.new_cache(2, 4)
    with torch.no_grad(), pytest.raises(ValueError, match="room for 4"):
        model.hidden(tokens(length=5), cache)


def test_one_token_is_computed_by_its_own_experts_alone(monkeypatch):
    calls = []
    linear = experts.expert_linear
    monkeypatch.setattr(experts, "expert_linear", lambda x, *rest: calls.append(len(x)) or linear(x, *rest))
    moe = talkative_model(n_experts=8).blocks[0].mlp
    with torch.no_grad():
        moe(torch.randn(1, 1, 32))
    assert calls == [1] * 4, "up and down of two experts of eight"


def test_experts_that_no_token_goes_to_have_gradients_of_zero(monkeypatch):
    """They are left out of the computation; their gradients must not be what was in memory before."""
    moe = MoE(dataclasses.replace(SMALL, n_experts=8))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.normal_()
    empty_like = torch.empty_like

    def dirty(like):
        return empty_like(like).fill_(float("nan")) if like.is_floating_point() else empty_like(like)

    monkeypatch.setattr(torch, "empty_like", dirty)
    y, routing = moe(torch.randn(1, 2, 32))
    y.sum().backward()
    idle = routing.slots_per_expert_E == 0
    assert 4 <= idle.sum() < 8
    for parameter in (*moe.up.parameters(), *moe.down.parameters()):
        assert not parameter.grad[idle].any() and parameter.grad[~idle].flatten(1).any(1).all()


# ---- where stories end


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


# ---- sampling


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


# ---- what is printed


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


# ---- the command


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """One file of each kind, and some that are of no use."""
    folder = tmp_path_factory.mktemp("models")
    moe = talkative_model(BUILTIN, 8)
    models = {
        "dense": talkative_model(BUILTIN),
        "moe": moe,
        "grown": scale_bilaterally(moe, 1.5, 1, 1.0, seed=1),
        "nameless": talkative_model(dataclasses.replace(BUILTIN, tokenizer="")),
        "foreign": talkative_model(dataclasses.replace(BUILTIN, tokenizer="klingon")),
        "mismatch": talkative_model(dataclasses.replace(BUILTIN, vocab_size=4000)),
    }
    for name, model in models.items():
        save_model(model, folder / f"{name}.pt")
    (folder / "damaged.pt").write_bytes((folder / "dense.pt").read_bytes()[:5000])
    return {name: folder / f"{name}.pt" for name in (*models, "damaged", "missing")}


def tell(files, capsys, flags: str, *prompts: str) -> str:
    arguments = shlex.split(flags.format(**files)) + (["--prompt", *prompts] if prompts else [])
    assert generate.main(["--device", "cpu", *arguments]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("kind", ["dense", "moe", "grown"])
def test_every_kind_of_model_tells_its_story(kind, files, capsys):
    story = tell(files, capsys, f"--checkpoint {{{kind}}} --max-tokens 9")
    assert story.startswith("Once upon a time") and len(story) > len("Once upon a time") + 9 and story.endswith("\n")
    assert tell(files, capsys, f"--checkpoint {{{kind}}} --max-tokens 9") == story
    assert tell(files, capsys, f"--checkpoint {{{kind}}} --max-tokens 9 --seed 1") != story


def test_stories_in_a_file_are_separated_as_training_reads_them(files, capsys):
    prompts = ["Once upon a time", "A cat", "Once upon a time"]
    flags = "--checkpoint {moe} --max-tokens 6"
    stories = tell(files, capsys, flags, *prompts).rstrip("\n").split(f"\n{END_OF_TEXT}\n")
    assert [story.startswith(prompt) for story, prompt in zip(stories, prompts)] == [True] * 3
    assert stories[0] != stories[2], "the same prompt again takes the next seed"
    assert tell(files, capsys, flags, "A cat") == stories[1] + "\n"
    assert tell(files, capsys, flags + " --seed 1", prompts[0]) == stories[2] + "\n"


def test_a_prompt_has_the_one_form_that_stories_have(files, capsys):
    flags = "--checkpoint {dense} --max-tokens 6"
    assert tell(files, capsys, flags, "\ufeffA cat\r\nran") == tell(files, capsys, flags, "A cat\nran")


def test_a_prompt_that_the_tokenizer_loses_a_part_of_is_refused(tmp_path, files, capsys):
    tokenizer = Tokenizer.from_str(as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT).decode())
    tokenizer.normalizer = normalizers.Replace("quokka", "cat")  # which no probe knows of
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    flags = ["--checkpoint", str(files["nameless"]), "--tokenizer", str(tmp_path / "tokenizer.json"), "--prompt"]
    assert generate.main([*flags, " A cat", "A quokka"]) == 2
    assert "loses text" in capsys.readouterr().err
    assert generate.main([*flags, " A cat "]) == 0


def test_a_line_says_how_fast_and_why_a_story_stops(files, capsys):
    assert generate.main(["--checkpoint", str(files["dense"]), "--device", "cpu", "--prompt", "A cat", "A dog"]) == 0
    error = capsys.readouterr().err
    assert f"{files['dense']} reads 32 tokens; the story of prompt 1, 2 stops there\n" in error
    assert re.search(r"\n\d+ tokens in [\d.]+ s, [\d.]+ tokens per second \(cpu\)\n$", error)


def test_a_model_and_its_grown_self_are_shown_to_tell_the_same(files, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    out = tell(files, capsys, "--compare {moe} {grown} --max-tokens 12", "A cat", "A dog")
    assert out.count("the same, token for token (12 tokens)") == 2
    columns = [[side.strip() for side in line.split("│")] for line in out.splitlines() if "│" in line]
    assert all(left == right for left, right in columns if not left.endswith(".pt"))
    assert max(map(len, out.splitlines())) <= 80
    assert "they part at token" in tell(files, capsys, "--compare {moe} {dense} --max-tokens 12")


def test_the_latest_model_is_taken_where_none_is_named(files, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(generate, "latest_checkpoint", lambda: checkpoint.latest_checkpoint(tmp_path))
    assert generate.main(["--device", "cpu"]) == 2
    assert "holds no trained model" in capsys.readouterr().err
    for phase, name in ((1, "dense"), (2, "moe")):
        (tmp_path / phase_of(phase).file).write_bytes(files[name].read_bytes())
        assert generate.main(["--device", "cpu", "--max-tokens", "1"]) == 0
        assert capsys.readouterr().err.startswith(f"model {tmp_path / phase_of(phase).file}\n")


BAD = [
    ("--checkpoint {missing}", "no model file at"),
    ("--checkpoint {damaged}", "is damaged or no model of ours"),
    ("--checkpoint {nameless}", "does not say what its ids mean; give --tokenizer builtin, gpt2 or a tokenizer.json"),
    ("--checkpoint {foreign}", "no tokenizer is named 'klingon'; there are builtin and gpt2"),
    ("--checkpoint {mismatch}", "has a vocabulary of 4,000 ids, but the tokenizer builtin has 4,097"),
    ("--checkpoint {dense} --tokenizer gpt2", "was trained on the ids of builtin; leave --tokenizer out"),
    ("--checkpoint {nameless} --tokenizer klingon", "no tokenizer is named 'klingon'"),
    ("--checkpoint {dense} --device tpu", "invalid choice: 'tpu'"),
    ("--checkpoint {dense} --temperature -1", "temperature is -1, must be a finite number of 0 or more"),
    ("--checkpoint {dense} --temperature nan", "temperature is nan"),
    ("--checkpoint {dense} --temperature inf", "temperature is inf"),
    ("--checkpoint {dense} --top-k -1", "top_k is -1"),
    ("--checkpoint {dense} --top-k 1.5", "invalid int value: '1.5'"),
    ("--checkpoint {dense} --top-p 0", "top_p is 0, must be above 0 and at most 1"),
    ("--checkpoint {dense} --top-p 1.1", "top_p is 1.1"),
    ("--checkpoint {dense} --top-p nan", "top_p is nan"),
    ("--checkpoint {dense} --max-tokens 0", "--max-tokens is 0, must be at least 1"),
    ("--checkpoint {dense} --seed -1", "--seed is -1"),
    ("--checkpoint {dense} --seed 9223372036854775808", "--seed is 9223372036854775808"),
    ("--checkpoint {dense} --prompt", "expected at least one argument"),
    ("--checkpoint {dense} --prompt A ' '", "--prompt 2 is empty; give it the first words of a story"),
    ("--checkpoint {dense} --prompt '" + "once upon " * 30 + "'", "--prompt 1 has 62 tokens"),
    ("--checkpoint {dense} --prompt 'A cat<|endoftext|>A dog'", "--prompt 1 holds <|endoftext|>, which ends a story"),
    ("--checkpoint {dense} --promt A", "unknown flag --promt; did you mean --prompt?"),
    ("--checkpoint {dense} --compare {dense} {moe}", "not allowed with argument"),
    ("--compare {dense}", "expected 2 arguments"),
    ("--compare {missing} {dense}", "no model file at"),
]


@pytest.mark.parametrize("flags, text", BAD, ids=[text[:40] for _, text in BAD])
def test_bad_input_gets_one_line_and_exit_code_2(flags, text, files, capsys):
    assert generate.main(shlex.split(flags.format(**files))) == 2
    result = capsys.readouterr()
    assert text in result.err and result.err.startswith("error: ") and result.err.count("\n") == 1
    assert result.out == ""


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there(files, capsys):
    assert generate.main(["--checkpoint", str(files["dense"]), "--device", "cuda"]) == 2
    assert "has no cuda; available: " in capsys.readouterr().err


def test_a_file_that_names_no_tokenizer_can_be_used_with_one(files, capsys):
    flags = "--max-tokens 5 --checkpoint "
    assert tell(files, capsys, flags + "{nameless} --tokenizer builtin") == tell(files, capsys, flags + "{dense}")


def test_two_tokenizers_are_not_compared(files, capsys, monkeypatch):
    load = generate.load_trained

    def other(path, *rest):
        trained = load(path, *rest)
        return trained._replace(encoding=SimpleNamespace(name="gpt2")) if path == files["moe"] else trained

    monkeypatch.setattr(generate, "load_trained", other)
    assert generate.main(["--device", "cpu", "--compare", str(files["dense"]), str(files["moe"])]) == 2
    assert "have other tokenizers" in capsys.readouterr().err


def test_out_of_memory_is_one_line(files, capsys, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(generate, "stream_tokens", full)
    assert generate.main(["--checkpoint", str(files["dense"])]) == 4
    assert "out of memory: fewer prompts" in capsys.readouterr().err


# Every token takes a second, as with a large model: signals and closed pipes come in the middle of a story.
# A shell hands on an ignored Ctrl-C to what it starts in the background, which these tests may be.
SLOW = """
import signal, sys, time, generate
signal.signal(signal.SIGINT, signal.default_int_handler)
stream = generate.stream_tokens
def slow(*arguments):
    for each in stream(*arguments):
        yield each
        time.sleep(1)
generate.stream_tokens = slow
sys.exit(generate.main(["--device", "cpu", "--checkpoint", {path!r}]))
"""


@pytest.fixture
def telling(files):
    """A process in the middle of a story: its prompt and some of what follows have been read."""
    code = SLOW.format(path=str(files["dense"]))
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, bufsize=0, **pipes) as process:
        assert process.stdout.read(16) == b"Once upon a time" and process.stdout.read(1)
        yield process


def test_ctrl_c_leaves_what_was_printed(telling):
    telling.send_signal(signal.SIGINT)
    assert telling.wait(timeout=60) == 130 and telling.stderr.read() == b"\nstopped\n"


def test_a_pipe_that_nobody_reads_ends_it_quietly(telling):
    telling.stdout.close()
    assert telling.wait(timeout=60) == 141 and telling.stderr.read() == b""


def test_help_and_documents_have_examples_that_work(capsys):
    with pytest.raises(SystemExit) as stopped:
        generate.main(["--help"])
    assert stopped.value.code == 0
    texts = [capsys.readouterr().out]
    texts += [path.read_text(encoding="utf-8") for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))]
    commands = [line for text in texts for line in re.findall(r"^\s*python generate\.py( .*)?$", text, re.M)]
    assert len(commands) >= 4
    for command in commands:
        words = shlex.split(command.split("  ")[0], comments=True)
        if "--help" not in words:
            generate.parse(words)
