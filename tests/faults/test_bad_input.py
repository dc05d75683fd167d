"""Every mistake gets one clear line and exit code 2, or a run that works; here a selection, all in the campaign."""

import dataclasses

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import train_tinystories
from config import TrainingConfig, UserError
from tests.faults import bad_input
from tests.faults.strategies import flags


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mistakes")
    bad_input.story_files(folder)
    with bad_input.quick_runs():
        yield folder


def test_every_field_with_wrong_values(folder):
    cases = [*bad_input.cases_of_fields()][::2]  # the campaign goes by all
    problems = [problem for case in cases if (problem := bad_input.problem_with(folder, case))]
    assert problems == []


@pytest.mark.parametrize("item", dataclasses.fields(TrainingConfig), ids=lambda item: item.name)
def test_a_value_of_a_wrong_type_is_named_in_code_as_well(item):
    for value in (None, "many", 1.5, True, [1]):
        if type(value) is type(item.default):
            continue
        with pytest.raises(UserError, match=f"{item.name} is .*, must be of type") as caught:
            dataclasses.replace(TrainingConfig(), **{item.name: value}).validate()
        assert "\n" not in str(caught.value)


def test_every_file_that_is_bad(tmp_path, folder):
    problems = [
        problem for case in bad_input.cases_of_files(tmp_path) if (problem := bad_input.problem_with(folder, case))
    ]
    assert problems == []


@settings(max_examples=25, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_settings_together(folder, data):
    assert bad_input.problem_with(folder, data.draw(flags())) == ""


def test_a_traceback_and_a_silent_end_would_be_noticed(folder, monkeypatch):
    def raises(arguments):
        raise ValueError("no line")

    assert bad_input.problem_with(folder, ("--seed", "1")) == ""
    monkeypatch.setattr(train_tinystories, "main", raises)
    assert "ValueError: no line" in bad_input.problem_with(folder, ("--seed", "1"))
    monkeypatch.setattr(train_tinystories, "main", lambda arguments: 2)
    assert "exit code 2" in bad_input.problem_with(folder, ("--seed", "1"))
