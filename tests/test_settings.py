"""The page of settings: what its text says is what is checked, and what a person reads."""

import dataclasses
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from config import SETTINGS, ModelConfig, TrainingConfig, UserError
from models import next_token_loss
from settings import read_settings
from test_growth_checks import lively_moe_model

ROOT = Path(__file__).parent.parent
BOUNDS = {
    "at least 1": "batch_size context_length n_experts top_k accumulate log_every eval_every eval_batches",
    "0 or more": "steps_phase1 steps_phase2 steps_phase3 warmup_steps sample_tokens seed noise_std router_std "
    "weight_decay balance_weight z_weight save_every",
    "above 0": "lr_phase1 lr_phase2 lr_phase3 grad_clip check_tolerance",
    "between 0 and 1": "final_lr_share",
}
JUST_OUTSIDE = {"at least 1": [0], "0 or more": [-1], "above 0": [0], "between 0 and 1": [-0.1, 1.1]}


@pytest.mark.parametrize("bound, name", [(bound, name) for bound in BOUNDS for name in BOUNDS[bound].split()])
def test_a_value_outside_its_bound_is_named_with_the_bound(bound, name):
    assert f"({bound})" in SETTINGS[name].help
    for value in JUST_OUTSIDE[bound]:
        value = SETTINGS[name].kind(value)
        with pytest.raises(UserError) as caught:
            dataclasses.replace(TrainingConfig(), **{name: value}).validate()
        assert f"{name} is {value!r}, must be {bound}" in str(caught.value).split("; ")


def test_the_bound_itself_is_a_value():
    for name, value in (("steps_phase1", 0), ("batch_size", 1), ("final_lr_share", 1.0), ("final_lr_share", 0.0)):
        dataclasses.replace(TrainingConfig(), **{name: value}).validate()


@pytest.mark.parametrize(
    "name, value, choices",
    [
        ("start_phase", 4, "1, 2, 3"),
        ("device", "tpu", "auto, cuda, mps, cpu"),
        ("precision", "fp16", "auto, fp32, bf16"),
        ("memory", "", "auto, full, lean"),
        ("grow_when", "never", "fixed, auto"),
        ("grow_optimizer", "old", "grown, asymmetric, fresh"),
    ],
)
def test_a_value_that_is_no_choice_is_named_with_the_choices(name, value, choices):
    with pytest.raises(UserError) as caught:
        dataclasses.replace(TrainingConfig(), **{name: value}).validate()
    assert str(caught.value) == f"{name} is {value!r}, must be one of {choices}"


def test_every_field_has_a_group_and_a_text():
    assert list(SETTINGS) == [item.name for item in dataclasses.fields(TrainingConfig)]
    groups = list(dict.fromkeys(setting.group.split(" (")[0] for setting in SETTINGS.values()))
    assert groups == ["Run", "Size and time", "Model", "Growth", "Data", "Optimizer", "Reporting"]
    assert all(setting.help.endswith(".") and setting.short_help.endswith(".") for setting in SETTINGS.values())


@pytest.mark.parametrize(
    "fields, problem",
    [
        ('# == A ==\n    width: int = 1\n    """Of the page (at least 3)."""\n', "Page.width is to be 'at least 3'"),
        (
            '# == A ==\n    width: int = 1\n    height: int = 2\n    """Text."""\n',
            "Page.width has no docstring under it",
        ),
        (
            '# == A ==\n    width: int = 1\n    """Text."""\n    height: int = 2\n',
            "Page.height has no docstring under it",
        ),
        ('width: int = 1\n    """Text."""\n', "Page.width stands under no heading"),
    ],
)
def test_a_page_that_promises_what_is_not_checked_is_refused(fields, problem, tmp_path, monkeypatch):
    with pytest.raises(TypeError, match=problem):
        read_settings(page(fields, tmp_path, monkeypatch))


def page(fields: str, folder: Path, monkeypatch) -> type:
    """The class of a page whose source lies in a file, as that of config.py does."""
    path = folder / "page.py"
    path.write_text(f"class Page:\n    {fields}", encoding="utf-8")
    spec = importlib.util.spec_from_file_location("page", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "page", module)
    spec.loader.exec_module(module)
    return module.Page


def test_the_page_is_read_from_a_zip_file_and_without_docstrings(tmp_path):
    with zipfile.ZipFile(tmp_path / "code.zip", "w") as archive:
        for name in ("config.py", "model_config.py", "phases.py", "settings.py"):
            archive.write(ROOT / name, name)
    code = "import sys; sys.path.insert(0, 'code.zip'); from config import SETTINGS; print(SETTINGS['seed'].bound)"
    result = subprocess.run([sys.executable, "-OO", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == "0 or more\n", result.stderr


def test_a_router_that_could_not_learn_is_refused_with_the_reason():
    with pytest.raises(UserError, match="top_k is 1, with which no router learns: .* give --top-k 2"):
        TrainingConfig(top_k=1).validate()
    TrainingConfig(top_k=1, n_experts=1).validate()
    TrainingConfig(top_k=2).validate()
    # What is said of it: the gradient of the language loss is exactly zero there, and not with two.
    for top_k in (1, 2):
        model = lively_moe_model(ModelConfig(101, 32, 2, 4, context_length=16)).requires_grad_(True)
        for block in model.blocks:
            block.mlp.top_k = top_k
        next_token_loss(model, torch.randint(101, (4, 17), generator=torch.Generator().manual_seed(0)))[0].backward()
        touched = [bool(block.mlp.router.weight.grad.any()) for block in model.blocks]
        assert touched == [top_k == 2] * 2


def test_auto_is_refused_where_nobody_knows_what_was_trained_before():
    with pytest.raises(UserError, match="grow_when is 'auto', but with start_phase 2 .* give --grow-when fixed"):
        TrainingConfig(start_phase=2, grow_when="auto").validate()
