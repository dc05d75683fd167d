"""How much memory a Mac has for a run: of its GPU's working set, of the machine, or not enough."""

import dataclasses

import pytest
import torch

import train_tinystories
from tests.devices.pretending import pretending
from training import machine as machine_module
from training.machine import GB, Machine, bytes_beyond

CPU = torch.device("cpu")


def mac(monkeypatch, total: float, working_set: float) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: int(working_set * GB))
    monkeypatch.setattr(machine_module.psutil, "virtual_memory", lambda: Total(total * GB))


@dataclasses.dataclass
class Total:
    """Of psutil's figures those that are asked for."""

    total: float
    available: float = 1e12


def test_a_mac_has_what_its_system_leaves(monkeypatch):
    mps = torch.device("mps")
    mac(monkeypatch, 25.77, 17.18)
    machine = Machine.now(mps, None)
    assert machine.available == pytest.approx(17.18 * GB) and machine.most == pytest.approx(22.77 * GB)
    mac(monkeypatch, 8.59, 5.73)
    assert bytes_beyond(mps) == 0, "the system needs more than the working set leaves"
    assert bytes_beyond(CPU) == bytes_beyond(torch.device("cuda")) == 0


TINY_RUN = (
    "--preset tiny --data builtin --device mps --precision fp32 --d-model 64 --n-layers 2 --n-heads 2 --extra-layers 1 "
    "--n-experts 4 --batch-size 4 --context-length 32 --steps-phase1 1 --steps-phase2 1 --steps-phase3 1 "
    "--eval-batches 1 --sample-tokens 0"
).split()


@pytest.mark.parametrize("working_set, total, outcome", [(1.0, 16, "runs"), (0.2, 16, "warned"), (0.2, 3.3, "refused")])
def test_a_pretended_mac_runs_or_runs_with_a_warning_or_is_refused(
    working_set, total, outcome, tmp_path, token_cache, monkeypatch, capsys
):
    """`--plan` and the run say the same."""
    flags = [*TINY_RUN, "--checkpoint-dir", str(tmp_path / "run"), "--cache-dir", token_cache]
    with pretending("mps"):
        mac(monkeypatch, total, working_set)
        assert train_tinystories.main([*flags, "--plan"]) == 0
        said = [capsys.readouterr().out]
        if outcome != "runs":  # that a run runs is tested elsewhere
            assert train_tinystories.main(flags) == (2 if outcome == "refused" else 0)
            said.append("".join(capsys.readouterr()))
    for text in (" ".join(text.split()) for text in said):
        assert ("slower, beyond this Mac's working set" in text) == (outcome == "warned")
        assert ("will not fit" in text) == (outcome == "refused")
        assert ("About" in text) == (outcome != "refused")
    assert (tmp_path / "run" / "large_moe_final.pt").exists() == (outcome == "warned")
