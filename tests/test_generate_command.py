"""`python generate.py`: what it tells, and what it refuses."""

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
from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.tokenizer_file import as_tokenizer_json
from inference import checkpoint
from models import save_model
from phases import phase_of
from tests.talkative import BUILTIN, talkative_model
from transfer.simple_growth import scale_bilaterally

ROOT = Path(__file__).parent.parent


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
