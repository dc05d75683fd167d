"""The whole product on a Mac and on a CUDA card that are not there: a run, its resume, stories, an evaluation.

Every operator of it passes through the pretended device. One that takes tensors of two devices, a generator of another,
fp64 on MPS, or a shape that torch gets wrong there ends the test; so does one that MPS has no kernel for.
"""

import json
import signal

import pytest

import evaluate
import generate
import train_tinystories
from phases import PHASES
from run import loop
from run.compare import differences
from tests.devices.cpu_as_device import as_on
from tests.devices.mps_kernels import without_kernel
from tests.devices.pretending import pretending

TINY = (
    "--preset tiny --data builtin --d-model 64 --n-layers 2 --n-heads 2 --extra-layers 1 --n-experts 4 --batch-size 4 "
    "--context-length 32 --steps-phase1 3 --steps-phase2 3 --steps-phase3 3 --log-every 2 --eval-every 2 "
    "--eval-batches 1 --sample-tokens 6"
).split()
STOPPED_IN_STEP = 5  # of 9: in phase 2


def start(folder, token_cache, *flags) -> int:
    return train_tinystories.main([*TINY, "--checkpoint-dir", str(folder), "--cache-dir", token_cache, *flags])


def stop_and_resume(folder, token_cache, monkeypatch, *flags) -> None:
    steps, train_step = [], loop.train_step

    def stopped(*args):
        steps.append(args)
        if len(steps) == STOPPED_IN_STEP:
            signal.raise_signal(signal.SIGTERM)
        return train_step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", stopped)
        assert start(folder, token_cache, *flags) == 128 + signal.SIGTERM
        assert len(steps) == STOPPED_IN_STEP
        assert train_tinystories.main(["--resume", "--checkpoint-dir", str(folder)]) == 0
    assert len(steps) == 9


def evaluated(folder, device: str) -> float:
    figures = folder / f"{device}.json"
    given = ("--data", "builtin", "--max-tokens", "500", "--json", str(figures))
    assert evaluate.main(["--checkpoint", str(folder / PHASES[-1].file), "--device", device, *given]) == 0
    return json.loads(figures.read_text())["loss"]


@pytest.mark.parametrize(
    "kind, flags",
    [
        ("mps", "--precision bf16 --memory lean"),
        ("mps", "--precision fp32"),
        ("mps", "--precision bf16 --architecture llama"),
        ("cuda", "--precision bf16 --architecture llama"),
        ("cuda", "--precision bf16 --accumulate 2"),
        ("cuda", "--precision fp32"),
    ],
)
def test_a_whole_run(kind, flags, tmp_path, token_cache, monkeypatch, capsys):
    flags = flags.split()
    folder = tmp_path / kind
    with pretending(kind) as device:
        stop_and_resume(folder, token_cache, monkeypatch, "--device", kind, *flags)
        told = ("--max-tokens", "4", "--prompt", "Once upon a time", "The sad cat")
        capsys.readouterr()
        assert generate.main(["--checkpoint", str(folder / PHASES[-1].file), "--device", kind, *told]) == 0
        assert capsys.readouterr().out.startswith("Once upon a time")
        loss = evaluated(folder, kind)
    if kind == "mps":
        assert without_kernel(device.operators) == []

    with as_on(kind):
        assert evaluated(folder, "cpu") == loss
        if "fp32" in flags:
            assert start(tmp_path / "cpu", token_cache, "--device", "cpu", *flags) == 0
            parted = [text for _, text in differences(tmp_path / "cpu", folder) if "device" not in text.split(":")[0]]
            assert parted == []
