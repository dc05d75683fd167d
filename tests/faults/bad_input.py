"""What people may give by mistake, and whether it gets one clear line or a run that works; never a traceback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import io
import json
import os
import signal
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

import torch

import train_tinystories
from config import TrainingConfig
from data.builtin_stories import builtin_split
from data.tokenizer import END_OF_TEXT, load_tokenizer
from data.tokenizer_file import as_tokenizer_json
from run import loop
from tests.faults.damage import redirected
from training import device

# One step a phase: a run that works does so within a second.
TINY = (
    "--device cpu --preset tiny --tokenizer builtin --d-model 8 --n-heads 2 --n-layers 1 --extra-layers 1 --n-experts 2 "
    "--top-k 2 --batch-size 2 --context-length 16 --steps-phase1 1 --steps-phase2 1 --steps-phase3 1 --eval-batches 1 "
    "--sample-tokens 2"
).split()
# A run that would go on for ever works, too: it is asked to stop after so many steps.
ENOUGH_STEPS = 4
STOPPED = 130

WRONG = {
    int: ("many", "1.5", "-1", "0", "9" * 30, "nan", ""),
    float: ("many", "-1", "0", "1e308", "nan", "inf", "-inf", ""),
    str: ("", "-1", "0", "x" * 5000, "nan", "\x01", "café/…", "a\nb"),
    bool: ("yes",),
}


# By the beginning of their content: what people have, and what is no text of stories.
NO_STORIES = {
    "csv": b"id,text\n" + b'1,"Tom saw a dog, and it ran."\n' * 60,
    "tsv": b"id\ttext\n" + b"1\tTom saw a dog.\n" * 60,
    "json": json.dumps([{"text": "Tom saw a dog."}] * 60).encode(),
    "html": b"<!DOCTYPE html><html><body>" + b"<p>Tom saw a dog.</p>" * 60,
    "xml": b'<?xml version="1.0"?><stories>' + b"<s>Tom saw a dog.</s>" * 60,
    "pdf": b"%PDF-1.7\n" + bytes(range(256)) * 8,
    "png": b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8,
    "zip": b"PK\x03\x04" + bytes(range(256)) * 8,
    "npy": b"\x93NUMPY\x01\x00" + bytes(range(256)) * 8,
    "arrow": b"ARROW1\x00\x00" + bytes(range(256)) * 8,
    "bin": bytes(4096),
    "utf32": ("Tom saw a dog. " * 60).encode("utf-32"),
    "yaml": b"- text: Tom saw a dog.\n" * 60,
    "htm": b"<!-- stories -->\n<div>" + b"Tom saw a dog. " * 60,
}


def cases_of_fields() -> list[tuple[str, ...]]:
    """Every field with every wrong value of its type, as flags."""
    cases = []
    for item in dataclasses.fields(TrainingConfig):
        flag = "--" + item.name.replace("_", "-")
        cases += [(f"{flag}={value}",) for value in WRONG[type(item.default)]]
    return cases


def story_files(folder: Path) -> dict[str, Path]:
    """Files that hold stories badly, and one that holds them well."""
    stories = builtin_split()[0][:60]
    text = END_OF_TEXT.join(stories)
    contents = {
        "good.txt": text.encode(),
        "empty.txt": b"",
        "binary.txt": bytes(range(256)) * 40,
        "latin1.txt": ("caf\xe9 " + text).encode("latin-1", "replace"),
        "utf16.txt": text.encode("utf-16"),
        "one.txt": b"Tom saw a dog.",
        "separators.txt": END_OF_TEXT.encode() * 50,
        "line.txt": b"Tom saw a dog. " * 700_000,
        "good.jsonl": "\n".join(json.dumps({"text": story}) for story in stories).encode(),
        "columns.jsonl": b'{"story": "Tom saw a dog."}\n',
        "story.jsonl": "\n".join(json.dumps({"story": story, "n": 1}) for story in stories).encode(),
        "two_columns.jsonl": b'{"story": "Tom saw a dog.", "text": "Tom ran."}\n' * 60,
        "other_columns.jsonl": b'{"story": "Tom saw a dog."}\n{"text": "Tom ran."}\n' * 30,
        "number.jsonl": b'{"text": 3}\n',
        "list.jsonl": b"[1]\n",
        "torn.jsonl": b'{"text": "Tom saw',
        "line.jsonl": json.dumps({"text": "Tom saw a dog. " * 700_000}).encode(),
        "deep.jsonl": b"[" * 100_000,
        "binary.parquet": bytes(range(256)) * 40,
        "empty.parquet": b"",
        "magic.parquet": b"PAR1" + bytes(100) + b"PAR1",
        # What is no text of stories, under a name that says so and under one that does not.
        **{name: content for kind, content in NO_STORIES.items() for name in (f"a.{kind}", f"{kind}.txt")},
        "good.txt.gz": gzip.compress(text.encode()),
        "torn.txt.gz": gzip.compress(text.encode())[:200],
        "good.jsonl.gz": gzip.compress("\n".join(json.dumps({"text": story}) for story in stories).encode()),
        "bom.txt": b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode(),
        "inside.jsonl": json.dumps({"text": text}).encode() * 2,
        "surrogate.jsonl": b'{"text": "Tom saw \\ud800 a dog."}\n' * 60,
        os.fsdecode(b"caf\xe9.txt"): text.encode(),
    }
    paths = {"missing.txt": folder / "missing.txt", "folder": folder / "folder"}
    paths["folder"].mkdir()
    for name, content in contents.items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    return paths


def tokenizer_files(folder: Path) -> list[Path]:
    """Files that are no tokenizer, or one that loses text, gives it other ids each time, or ends stories by itself."""
    good = json.loads(as_tokenizer_json(load_tokenizer("builtin"), END_OF_TEXT))

    def changed(change) -> bytes:
        content = json.loads(json.dumps(good))
        change(content)
        return json.dumps(content).encode()

    def without_merges(content):
        content["model"] |= {"merges": [], "vocab": {"a": 0, "b": 1, END_OF_TEXT: 2}}

    contents = {
        "good.json": json.dumps(good).encode(),
        "empty.json": b"",
        "torn.json": json.dumps(good).encode()[:5000],
        "binary.json": bytes(range(256)) * 40,
        "object.json": b"{}",
        "list.json": b"[1, 2]",
        "null.json": b"null",
        "deep.json": b"[" * 100_000,
        "dropout.json": changed(lambda content: content["model"].update(dropout=0.1)),
        "letters.json": changed(without_merges),
        "no_end.json": changed(lambda content: content.update(added_tokens=[])),
        "not_special.json": changed(lambda content: [token.update(special=False) for token in content["added_tokens"]]),
        "lowercase.json": changed(lambda content: content.update(normalizer={"type": "Lowercase"})),
        "strip.json": changed(
            lambda content: content.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True})
        ),
        "nothing.json": changed(
            lambda content: content.update(
                normalizer={"type": "Replace", "pattern": {"Regex": "[\\s\\S]"}, "content": ""}
            )
        ),
        "no_decoder.json": changed(lambda content: content.update(decoder=None)),
        "prefix.json": changed(lambda content: content["model"].update(continuing_subword_prefix="##")),
        "no_splits.json": changed(lambda content: content.update(pre_tokenizer=None)),
        "truncation.json": changed(
            lambda content: content.update(
                truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
            )
        ),
        os.fsdecode(b"t\xf6kens.json"): json.dumps(good).encode(),
    }
    paths = [folder / "missing.json"]
    for name, content in contents.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    return paths


def cases_of_tokenizers(folder: Path) -> list[tuple[str, ...]]:
    """Every bad tokenizer with good stories, with those of a jsonl, and for a later phase whose model has another."""
    folder.mkdir()
    paths, stories = tokenizer_files(folder), story_files(folder)
    cases = []
    for path in paths:
        cases += [("--tokenizer", str(path), "--data", str(stories[name])) for name in ("good.txt", "good.jsonl")]
        cases.append(("--tokenizer", str(path), "--data", "builtin", "--cache-dir", str(folder / "own cache")))
        for model in ("dense_model.pt", "moe_model_final.pt"):
            cases.append(
                ("--tokenizer", str(path), "--checkpoint-dir", placed(folder, path, model), "--start-phase", "2")
            )
    return cases


def cases_of_files(folder: Path) -> list[tuple[str, ...]]:
    """Every bad file as stories, as held-out stories, as a folder, and as each file that a run reads again."""
    paths = story_files(folder)
    good = str(paths["good.txt"])
    cases = [("--data", str(path)) for path in paths.values()]
    cases += [("--data", good, "--valid-data", str(path)) for path in paths.values()]
    cases += [(flag, str(paths["good.txt"])) for flag in ("--checkpoint-dir", "--cache-dir")]
    for name, path in paths.items():
        for phase, model in ((2, "dense_model.pt"), (3, "moe_model_final.pt")):
            cases.append(("--data", good, "--checkpoint-dir", placed(folder, path, model), "--start-phase", str(phase)))
        for saved in ("run_state.pt", "training_history.jsonl"):
            cases.append(("--checkpoint-dir", placed(folder, path, saved), "--resume"))
    return cases


def placed(folder: Path, path: Path, name: str) -> str:
    """A checkpoint folder in which the bad file (or folder) stands under the name of a good one."""
    place = Path(tempfile.mkdtemp(dir=folder))
    if path.is_dir():
        (place / name).mkdir()
    elif path.exists():
        (place / name).write_bytes(path.read_bytes())
    return str(place)


def problem_with(folder: Path, flags: tuple[str, ...]) -> str:
    """What is wrong with how a run with these flags ends; empty for one clear line, or for a run that works."""
    place = tempfile.mkdtemp(dir=folder)
    arguments = list(flags)
    if "--resume" not in flags:
        arguments = [*TINY, "--data", str(folder / "good.txt"), "--cache-dir", str(folder / "cache"), *flags]
    if not any(flag.startswith("--checkpoint-dir") for flag in flags):
        arguments += ["--checkpoint-dir", f"{place}/run"]
    out, err = io.StringIO(), io.StringIO()
    here = os.getcwd()
    os.chdir(place)  # relative paths among the values shall not litter the repository
    try:
        with redirected(out, err):
            code = train_tinystories.main(arguments)
    except SystemExit as end:  # --help
        code = end.code
    except BaseException:
        return f"{flags}: {traceback.format_exc()}"
    finally:
        os.chdir(here)
    error = err.getvalue()
    if code in (0, STOPPED):
        return ""
    # 3: it got as far as the growth checks, which refuse it in one line as well.
    if code not in (2, 3) or not error.startswith("error: ") or error.count("\n") != 1 or "Traceback" in out.getvalue():
        return f"{flags}: exit code {code}: {error}"
    return "" if len(error) < 1500 else f"{flags}: a line of {len(error)} characters"


@contextlib.contextmanager
def quick_runs() -> Iterator[None]:
    """Runs that stop after `ENOUGH_STEPS`, on a device that is checked once and a hub that is not asked."""
    save_if_due, find_fault = loop.save_if_due, device.find_fault

    def stopping(run, *rest):
        if run.progress.steps >= ENOUGH_STEPS:
            run.stop._receive(signal.SIGINT, None)
        save_if_due(run, *rest)

    loop.save_if_due, device.find_fault = stopping, functools.lru_cache(find_fault)
    try:
        yield
    finally:
        loop.save_if_due, device.find_fault = save_if_due, find_fault
        torch.set_num_threads(1)
