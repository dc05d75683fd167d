"""Every command in the README and in docs/ is taken out of the text and run, made small."""

from __future__ import annotations

import multiprocessing
import os
import re
import runpy
import shlex
import shutil
import signal
import sys
from pathlib import Path

import pytest
import torch._dynamo  # noqa: F401  imported here once, and not by every child anew

import train_tinystories  # noqa: F401  the same
from benchmarks.growth_study.__main__ import main as study
from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT
from run import loop
from tests.test_docs import DOCUMENTS, ROOT

MODEL = {"d-model": 16, "n-heads": 2, "n-layers": 1, "n-experts": 2, "context-length": 32}
STEPS = {"steps-phase1": 4, "steps-phase2": 4, "steps-phase3": 4, "eval-batches": 1, "sample-tokens": 4}
RUN = {"preset": "tiny", "batch-size": 2, "data": "builtin", "tokenizer": "builtin", "precision": "fp32"}
# Settings that each program gets beside those that the text gives it.
SMALL = {
    "train_tinystories.py": {**MODEL, **STEPS, **RUN},
    "test_growth_checks.py": {},
    "torchrun": {**MODEL, **STEPS, **RUN},
    "generate.py": {"max-tokens": 8, "device": "cpu"},
    "evaluate.py": {"max-tokens": 2000, "device": "cpu"},
    "transfer.grow": {},
    "hugging_face.export": {},
    "hugging_face.import_hf": {},
    "run.compare": {},
    "report": {},
}
# What the texts call the reader's own files, what has to be downloaded, and what only a large model can do.
PLACEHOLDERS = {
    **{"IN": "checkpoints/moe_model_final.pt", "OUT": "new.pt"},
    **{"RUN_A": "checkpoints", "RUN_B": "stopped", "DIR": "checkpoints"},
    **{
        "FOLDER": "neox",
        "HuggingFaceTB/SmolLM2-135M": "neox",
        **dict.fromkeys(("256", "512"), str(MODEL["context-length"])),
        "1.33333": "2",
    },
}
# Too long to run, even made small, and where they are run; `python -m pytest` is running this.
RUN_ELSEWHERE = {
    "pytest": "here",
    "lm_eval": "by hand: a large package of its own",
    "convert_hf_to_gguf.py": "by hand: of llama.cpp",
    "tests.faults.campaign": "tests/faults: a selection of it",
    "tests.faults.soak": "by hand",
    "tests.sweep_growth": "tests/test_near_ties.py",
    "data.train_tokenizer": "tests/test_builtin_stories.py",
    "benchmarks.growth_study": "tests/test_growth_study.py",
    "benchmarks.growth_study_report": "tests/test_growth_study_report.py",
    "benchmarks.reference_growth": "by hand, at reference size alone",
    "benchmarks.memory": "tests/test_benchmarks.py",
    "benchmarks.moe_layer": "tests/test_benchmarks.py",
    "benchmarks.step_time": "tests/test_benchmarks.py",
    "benchmarks.optimizer_cost": "tests/test_benchmarks.py",
    "benchmarks.gpu": "tests/test_benchmarks.py",
    "benchmarks.machines": "tests/test_benchmarks.py",
}


def commands_in(text: str) -> set[str]:
    """Lines of code blocks and inline code that call Python or torchrun, without their comments."""
    found = re.findall(r"^\s*(?:[A-Z_]+=\S+ )*((?:\.venv/bin/)?(?:python3? |torchrun [^`\n]*\.py).*)$", text, re.M)
    found += re.findall(r"`(?:[A-Z_]+=\S+ )*((?:python3? |torchrun [^`\n]*\.py)[^`]*)`", text)
    return {re.split(r"\s#", command)[0].strip().removeprefix(".venv/bin/") for command in found}


COMMANDS = sorted({command for path in DOCUMENTS for command in commands_in(path.read_text(encoding="utf-8"))})


def program_of(command: str) -> tuple[str, list[str]]:
    launcher, *words = shlex.split(command)
    if launcher == "torchrun":
        return launcher, words
    return (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])


# More machines than one cannot be had; four ranks, and their restarts, are in tests/ranks.
OF_A_CLUSTER = ("--nnodes=2", "--nproc-per-node=4")
RUNNABLE = [
    command
    for command in COMMANDS
    if program_of(command)[0] not in {*RUN_ELSEWHERE, "venv"} and not any(flag in command for flag in OF_A_CLUSTER)
]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder as a reader has it: stories, a finished run in checkpoints/, and one that was stopped."""
    folder = tmp_path_factory.mktemp("workplace")
    for name, stories in zip(("train.txt", "valid.txt"), builtin_split()):
        (folder / name).write_text(END_OF_TEXT.join(stories[:200]), encoding="utf-8")
    for name, more in (("checkpoints", []), ("stopped", ["--save-every", "0"])):
        arguments = with_small("train_tinystories.py", [*more, "--checkpoint-dir", name])
        assert run("train_tinystories.py", arguments, folder, stops_after=2 if more else None) == 143 * bool(more)
    shutil.copy(folder / "checkpoints" / "large_moe_final.pt", folder / "grown.pt")
    (folder / "imported").mkdir()
    shutil.copy(folder / "checkpoints" / "dense_model.pt", folder / "imported")
    assert run("hugging_face.export", ["--checkpoint", "checkpoints/dense_model.pt", "--out", "neox"], folder) == 0
    return folder


def with_small(program: str, words: list[str]) -> list[str]:
    more = {} if "--resume" in words else SMALL[program]
    return words + [
        text for flag, value in more.items() if f"--{flag}" not in words for text in (f"--{flag}", str(value))
    ]


def run(program: str, arguments: list[str], folder: Path, stops_after: int | None = None) -> int:
    """The exit code of a program that is run in `folder`; its output is in `folder`/output.

    Args:
        stops_after: SIGTERM comes after so many steps.
    """
    context = multiprocessing.get_context("fork")
    child = context.Process(target=in_child, args=(program, arguments, folder, stops_after))
    child.start()
    child.join()
    return child.exitcode


def in_child(program: str, arguments: list[str], folder: Path, stops_after: int | None) -> None:
    os.chdir(folder)
    sys.stdout = sys.stderr = open("output", "w", encoding="utf-8", buffering=1)
    sys.argv = [program, *arguments]
    if stops_after is not None:
        stop_after(stops_after)
    if program == "torchrun":
        sys.argv = [str(ROOT / word) if word.endswith(".py") else word for word in sys.argv]
        program = "torch.distributed.run"
    if program.endswith(".py"):
        runpy.run_path(str(ROOT / program), run_name="__main__")
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


def stop_after(n_steps: int) -> None:
    whole_step, steps = loop.train_step, iter(range(n_steps - 1))

    def step(*arguments):
        if next(steps, None) is None:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole_step(*arguments)

    loop.train_step = step


def test_commands_are_found():
    text = "```bash\nX=1 python a.py --b   # why\n.venv/bin/python -m c d\n```\nand `python e.py` or `f.py`;\ntorchrun --n a.py\ntorchrun sends"
    assert commands_in(text) == {"python a.py --b", "python -m c d", "python e.py", "torchrun --n a.py"}
    assert {"python train_tinystories.py", "python train_tinystories.py --resume"} <= set(COMMANDS)
    programs = {program_of(command)[0] for command in COMMANDS}
    assert {*SMALL, *RUN_ELSEWHERE} - programs - {"test_growth_checks.py"} == set(), "no text names these any more"


def test_a_command_that_does_not_work_is_found(workplace, tmp_path):
    assert run("train_tinystories.py", ["--step-phase1", "4"], tmp_path) == 2
    assert "unknown flag --step-phase1" in (tmp_path / "output").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", [c for c in COMMANDS if program_of(c)[0] == "benchmarks.growth_study"])
def test_documented_studies_fail_for_nothing_but_the_missing_stories(command, tmp_path, monkeypatch, capsys):
    """Flags and arms are looked at first; the runs themselves are too long for a test."""
    monkeypatch.chdir(tmp_path)
    assert study([*program_of(command)[1], "--out", "none.json"]) == 2
    assert "data is 'train.txt'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [pytest.param(c, marks=[pytest.mark.slow] * c.startswith("torchrun")) for c in RUNNABLE]
)
def test_documented_command_works(command, workplace, tmp_path):
    program, words = program_of(command)
    assert program in SMALL, f"say in SMALL how {program} is made small, or in RUN_ELSEWHERE where it is run"
    folder = tmp_path / "workplace"
    shutil.copytree(workplace, folder)
    if "train_tinystories.py" in (program, *words) and "--checkpoint-dir" not in words:
        place = "stopped" if "--resume" in words else "imported" if "--start-phase" in words else "another"
        words = [*words, "--checkpoint-dir", place]
    words = [PLACEHOLDERS.get(word, word) for word in words]
    if "--out" in words:  # no command overwrites
        (folder / words[words.index("--out") + 1]).unlink(missing_ok=True)
    code = run(program, with_small(program, words), folder)
    differs = program == "run.compare"  # which says so with 1
    assert code == (1 if differs else 0), (folder / "output").read_text(encoding="utf-8")
