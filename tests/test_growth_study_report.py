"""The growth study's report: its figures against hand calculations, what it writes, how it refuses."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import growth_study_report as report
from benchmarks.growth_study import comparison, tables
from benchmarks.growth_study.picture import draw_panel, growth_costs
from benchmarks.growth_study.results import ABLATION, AUTO, MIDDLE, OURS, RESULTS, SCRATCH, SMALL_MOE, Study, read_study

# Loss by arm, seed and TFLOP.
LOSSES = {
    SCRATCH: {0: {1: 3.0, 4: 2.0}, 1: {1: 3.2, 4: 2.2}},
    SMALL_MOE: {0: {1: 2.6, 4: 2.4}, 1: {1: 2.8, 4: 2.1}},
    OURS: {0: {1: 2.5, 4: 1.5}, 1: {1: 2.9, 4: 1.9}},
    AUTO: {0: {4: 2.3}},
    "rival": {0: {4: 1.4}},
    f"{OURS}, lr 0.1": {0: {1: 2.5, 4: math.nan}},
    f"{OURS}, lr 0.02": {0: {1: 2.4, 4: 1.6}, 1: {1: 2.8, 4: 2.0}},
    f"{ABLATION}no noise": {1: {4: 2.0, 8: 1.8}},
    f"{ABLATION}no layers": {0: {4: 1.6, 8: 1.5}, 1: {4: 1.8, 8: 1.7}},
}
# Ours takes twice as long as the others at 1 TFLOP, and as long at 4.
SECONDS = {OURS: {1: 200, 4: 400}}


def annealed(arm: str, seed: int, tflop: int, loss: float) -> dict:
    seconds = SECONDS.get(arm, {}).get(tflop, 100 * tflop)
    return {
        "arm": arm, "seed": seed, "budget": tflop * 1e12, "flops": tflop * 1e12, "seconds": seconds, "loss": loss,
        "steps": 10 * tflop, "width": 96, "machine": "a machine",
    }  # fmt: skip


def all_rows() -> list[dict]:
    rows = [
        annealed(arm, seed, tflop, loss)
        for arm, seeds in LOSSES.items()
        for seed, losses in seeds.items()
        for tflop, loss in losses.items()
    ]
    way = [(48, 0.5), (64, 0.5), (64, 1.5), (96, 1.5), (96, 3.0)]
    return rows + [
        {**annealed(OURS, seed, 1, 2.9), "budget": None, "flops": at * 1e12, "seconds": 100 * at, "width": width}
        for seed in (0, 1)
        for width, at in way
    ]


def write(path: Path, rows: list) -> Path:
    path.write_text(json.dumps({"rows": rows}))
    return path


@pytest.fixture
def study(tmp_path) -> Study:
    return read_study(write(tmp_path / "results.json", all_rows()))


@pytest.fixture
def markdown(tmp_path) -> Path:
    path = tmp_path / "study.md"
    path.write_bytes(
        b"# Study\r\n\r\nBetween `<!-- tables: begin -->` and its end.\r\n<!-- tables: begin -->\r\nold\r\n"
        b"<!-- tables: end -->\r\n\x0clast \xc2\xb1 line"
    )
    return path


def line(table: str, arm: str) -> str:
    (found,) = [line for line in table.splitlines() if line.startswith(f"| {arm} |")]
    return found


def run(results: Path, markdown: Path) -> int:
    flags = {"results": results, "markdown": markdown, "picture": markdown.with_suffix(".png")}
    return report.main([text for name, path in flags.items() for text in (f"--{name}", str(path))])


def test_losses_are_means_with_half_the_range_best_first_and_equal_means_share_the_bold(study):
    assert tables.loss_table(study).splitlines() == [
        "| arm | seeds | 1 TFLOP | 4 TFLOP |",
        "| --- | --- | --- | --- |",
        "| rival | 1 | – | **1.400** |",
        "| ours | 2 | **2.700 ± 0.200** | 1.700 ± 0.200 |",
        "| target from scratch | 2 | 3.100 ± 0.100 | 2.100 ± 0.100 |",
        "| small MoE continued | 2 | **2.700 ± 0.100** | 2.250 ± 0.150 |",
        "| ours, auto | 1 | – | 2.300 |",
    ]


def test_cost_to_reach_a_loss_is_interpolated_and_never_extrapolated(study):
    """Ours falls by 1 nat from 1 to 4 TFLOP. Means: 2.7 to 2.1 is 0.6 of that, 4**0.6 / 4 = 57 %, in seconds
    2**0.6 / 2 = 76 %; seed 0: 2.5 to 2.0, 4**0.5 / 4 = 50 % and 71 %; seed 1: 2.9 to 2.2, 4**0.7 / 4 = 66 % and 81 %.
    Of the small MoE only seed 1 comes down to its 2.2: (2.8 - 2.2) / 0.7 of the way, 4**(6/7) / 4 = 82 %.
    """
    table = tables.reach_table(study)
    assert table.splitlines()[0] == (
        "| arm | loss 3.100: FLOPs | loss 3.100: seconds | loss 2.100: FLOPs | loss 2.100: seconds |"
    )
    assert line(table, SCRATCH) == "| target from scratch | 1 TFLOP | 100 s | 4 TFLOP | 400 s |"
    assert line(table, OURS) == "| ours | < 100 % | < 200 % | 57 % (50 to 66) | 76 % (71 to 81) |"
    partly = "not reached (82 to not reached)"
    assert line(table, SMALL_MOE) == f"| small MoE continued | < 100 % | < 100 % | {partly} | {partly} |"
    # One seed, which starts at 4 TFLOP, compared to the same seed of the scratch run.
    assert line(table, "rival") == "| rival | < 400 % | < 400 % | < 100 % | < 100 % |"


def test_the_scratch_run_reaches_its_own_loss_at_its_own_cost(study):
    for budget in study.budgets(SCRATCH):
        for cost in ("flops", "seconds"):
            assert comparison.reach_scratch(study, SCRATCH, budget, cost) == [comparison.Reach(0, 1.0)] * 3


def test_a_seed_that_lacks_a_budget_is_left_out_of_the_cost(tmp_path):
    rows = [row for row in all_rows() if (row["arm"], row["seed"], row["budget"]) != (OURS, 1, 4e12)]
    table = tables.reach_table(read_study(write(tmp_path / "results.json", rows)))
    assert line(table, OURS) == "| ours | < 100 % | < 200 % | 50 % | 71 % |"


def test_seconds_of_another_machine_do_not_count(tmp_path):
    """As before in FLOPs; in seconds ours has its run of 4 TFLOP alone: as long as the scratch run's, four times the
    short one's.
    """
    rows = [
        {**row, "machine": "a slow one", "seconds": 9e9} if (row["arm"], row["budget"]) == (OURS, 1e12) else row
        for row in all_rows()
    ]
    study = read_study(write(tmp_path / "results.json", rows))
    assert line(tables.reach_table(study), OURS) == "| ours | < 100 % | < 400 % | 57 % (50 to 66) | < 100 % |"
    assert tables.tables(study).endswith("Machine: a machine. Without seconds, beside it: a slow one.")
    elsewhere = [{**row, "machine": "a slow one"} if row["arm"] == OURS else row for row in all_rows()]
    study = read_study(write(tmp_path / "results.json", elsewhere))
    assert line(tables.reach_table(study), OURS) == "| ours | < 100 % | – | 57 % (50 to 66) | – |"


def test_ours_is_compared_to_the_arm_it_beats_by_least_on_the_same_seeds(study):
    table = tables.margin_table(study)
    assert table.splitlines()[2:] == [
        "| 4 TFLOP | ours, auto | fixed size | target from scratch | +0.300 | 0: +0.300 |",
        "| 1 TFLOP | ours | fixed size | small MoE continued | +0.000 ± 0.100 | 0: -0.100, 1: +0.100 |",
        "| 4 TFLOP | ours | fixed size | target from scratch | -0.400 ± 0.100 | 0: -0.500, 1: -0.300 |",
        "| 4 TFLOP | ours | other way to grow | rival | +0.100 | 0: +0.100 |",
    ]


def test_ablations_and_learning_rates_are_compared_where_both_have_seed_and_budget(study):
    text = tables.tables(study)
    assert "| ablation | seeds | 4 TFLOP | 8 TFLOP |" in text
    assert line(text, "no noise") == "| no noise | 1 | 2.000 (+0.100) | 1.800 |"
    # Minus 0.1 on one seed, plus 0.1 on the other.
    assert line(text, "no layers") == "| no layers | 2 | 1.700 ± 0.100 (+0.000 ± 0.100) | 1.600 ± 0.100 |"
    moved = "2.600 ± 0.200 (-0.100 ± 0.000) | 1.800 ± 0.200 (+0.100 ± 0.000)"
    assert line(text, "ours | 0.02") == f"| ours | 0.02 | 2 | {moved} |"
    assert line(text, "ours | 0.1") == "| ours | 0.1 | 1 | 2.500 (+0.000) | diverged |"
    assert text.index("| 0.02 |") < text.index("| 0.1 |")


def test_all_rows_that_are_kept_can_be_read():
    kept = read_study(RESULTS)
    assert len(kept.at(SCRATCH, kept.budgets(SCRATCH)[-1])) == 3


def test_tables_without_rows_are_left_out(tmp_path):
    few = [row for row in all_rows() if row["arm"] in (SCRATCH, SMALL_MOE)]
    text = tables.tables(read_study(write(tmp_path / "results.json", few)))
    assert [part for part in text.splitlines() if part.startswith("#")] == [
        "### Held-out loss",
        "### Cost of the scratch run's loss",
    ]


def test_it_prints_the_tables_puts_them_between_the_markers_and_draws(tmp_path, markdown):
    results = write(tmp_path / "results.json", all_rows())
    picture = tmp_path / "study.png"
    flags = ["--results", results, "--markdown", markdown, "--picture", picture]
    command = [sys.executable, "-m", "benchmarks.growth_study_report", *flags]
    result = subprocess.run(command, cwd=Path(report.__file__).parent.parent, capture_output=True, encoding="utf-8")
    assert (result.returncode, result.stderr) == (0, "")
    text = tables.tables(read_study(results))
    assert result.stdout == text + "\n"
    assert markdown.read_bytes() == (
        b"# Study\r\n\r\nBetween `<!-- tables: begin -->` and its end.\r\n<!-- tables: begin -->\r\n"
        + f"\n{text}\n\n".encode()
        + b"<!-- tables: end -->\r\n\x0clast \xc2\xb1 line"
    )
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 10_000


def test_a_study_that_has_only_begun_is_drawn(tmp_path, markdown, capsys):
    begun = [row for row in all_rows() if row["arm"] in (SCRATCH, f"{ABLATION}no noise")]
    assert run(write(tmp_path / "results.json", begun), markdown) == 0
    assert markdown.with_suffix(".png").stat().st_size > 10_000 and capsys.readouterr().err == ""


def test_growths_are_marked_where_the_longest_runs_grow(tmp_path):
    earlier = [
        {**row, "seed": 2, "flops": row["flops"] / 2} for row in all_rows() if row["arm"] == OURS and row["seed"] == 0
    ]
    rows = all_rows() + [row for row in earlier if row["budget"] != 4e12]
    assert growth_costs(read_study(write(tmp_path / "results.json", rows)), "flops") == [0.5e12, 1.5e12]


def test_the_picture_shows_the_arms_and_neither_sweeps_nor_ablations(study):
    panel = Figure().subplots()
    draw_panel(study, panel, "seconds", 1)
    bars, labels = panel.get_legend_handles_labels()
    assert labels == [
        "ours: middle size, then grown",
        "ours, auto: grown early, where that pays",
        SCRATCH,
        SMALL_MOE,
        "rival",
    ]
    assert bars[0].lines[0].get_xydata() == pytest.approx(np.array([[200, 2.7], [400, 1.7]]))
    assert panel.get_title().endswith("(dashed, 2.100) with 76 % of its seconds")
    assert [text.xy[0] for text in panel.texts] == [50, 150]


def changed(**values) -> list[dict]:
    first, *others = all_rows()
    return [{**first, **values}, *others]


@pytest.mark.parametrize(
    "rows, text",
    [
        ([], "no annealed rows of the arm 'target from scratch'"),
        ([row for row in all_rows() if row["arm"] != SCRATCH], "no annealed rows of the arm 'target from scratch'"),
        ([row for row in all_rows() if row["seed"] == 0], "has only one seed of 'target from scratch' at 1 TFLOP"),
        (changed(loss=math.nan), "'target from scratch' diverged"),
        (changed(bits_per_byte=1.2), 'row 1: the columns are ["arm", "seed",'),
        ([{"arm": SCRATCH}], 'row 1: the columns are ["arm"]; they have to be'),
        ([7], "row 1: the columns are 7; they have to be"),
        (changed(seed="first"), 'row 1: seed is "first"'),
        (changed(loss=None), "row 1: loss is null"),
        (changed(machine="another"), "'target from scratch' is from several machines"),
        (changed(seconds=0), "row 1: seconds is 0, must be more than 0"),
        (changed(arm="ours, lr high"), "row 1: arm is 'ours, lr high', but no learning rate follows ', lr '"),
        (all_rows() + all_rows()[:1], "budget 1e+12 is there twice"),
    ],
)
def test_results_that_cannot_be_compared_are_refused_in_one_line(tmp_path, markdown, capsys, rows, text):
    assert_refused(write(tmp_path / "results.json", rows), markdown, capsys, text)


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "No such file"),
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "holds no rows"),
        (b'{"rows": {}}', "holds no rows"),
    ],
)
def test_files_that_hold_no_results_are_refused_in_one_line(tmp_path, markdown, capsys, content, text):
    if content is not None:
        (tmp_path / "results.json").write_bytes(content)
    assert_refused(tmp_path / "results.json", markdown, capsys, text)


@pytest.mark.parametrize(
    "content, text",
    [
        (None, "No such file"),
        (b"\xff", "is not text in UTF-8"),
        (b"", "needs the lines"),
        (b"<!-- tables: begin -->\n", "needs the lines"),
        (b"<!-- tables: end -->\n<!-- tables: begin -->\n", "each once and in this order"),
        (b"<!-- tables: begin -->\n<!-- tables: end -->\n" * 2, "each once and in this order"),
    ],
)
def test_a_document_without_the_markers_is_refused_in_one_line(tmp_path, markdown, capsys, content, text):
    markdown.unlink() if content is None else markdown.write_bytes(content)
    assert_refused(write(tmp_path / "results.json", all_rows()), markdown, capsys, text)


def assert_refused(results: Path, markdown: Path, capsys, text: str) -> None:
    before = markdown.read_bytes() if markdown.exists() else None
    assert run(results, markdown) == 2
    error = capsys.readouterr().err
    assert text in error and error.startswith("error: ") and error.count("\n") == 1
    assert (markdown.read_bytes() if markdown.exists() else None) == before
    assert not markdown.with_suffix(".png").exists()


def test_a_picture_that_cannot_be_written_and_an_unknown_flag_are_one_line(tmp_path, markdown, capsys):
    flags = ["--results", str(write(tmp_path / "results.json", all_rows())), "--markdown", str(markdown)]
    before = markdown.read_bytes()
    for more, text in (
        (["--picture", str(tmp_path / "missing" / "study.png")], "No such file"),
        (["--picture", str(tmp_path / "study.story")], "Format 'story' is not supported"),
        (["--pictures", "a.png"], "unknown flag --pictures; did you mean --picture?"),
    ):
        assert report.main([*flags, *more]) == 2
        error = capsys.readouterr().err
        assert text in error and error.count("\n") == 1
    assert markdown.read_bytes() == before


def test_the_early_growths_in_the_docs_are_those_of_the_rows():
    """Losses by seed, and the mean of the differences to the middle size on the same seeds."""
    rows = json.loads((RESULTS.parent / "early_growth.json").read_text())["rows"]
    losses = {}
    for row in rows:
        if row["budget"] == 6e12:
            losses.setdefault(row["arm"].removeprefix(ABLATION), {})[row["seed"]] = row["loss"]
    fixed, auto = losses.pop(MIDDLE), losses.pop(AUTO)
    assert len(losses) == 6
    told = (Path(report.__file__).parent.parent / "docs" / "GROWTH_STUDY.md").read_text()
    assert f"`--grow-when auto` at 6 TFLOP ends at {auto[0]:.3f}, the middle size at {fixed[0]:.3f}" in told
    behind = {row["arm"]: row["loss"] for row in rows if row["budget"] == 96e12}
    assert (
        f"at 96 TFLOP it grows early and ends at {behind[AUTO]:.3f}, {behind[AUTO] - behind[SCRATCH]:.3f} behind"
        in told
    )
    assert f"at 96 the target ends at {behind[SCRATCH]:.3f} and the middle size at {behind[MIDDLE]:.3f}" in told
    for arm, by_seed in losses.items():
        cells = next(
            line.split(" | ") for line in told.splitlines() if line.startswith(f"| {arm} |") and line[-4:-2].isdigit()
        )
        assert cells[-3:-1] == [f"{by_seed[seed]:.3f}" if seed in by_seed else "–" for seed in (0, 1)]
        behind = sum(loss - fixed[seed] for seed, loss in by_seed.items()) / len(by_seed)
        assert cells[-1] == f"{behind:+.3f} |", arm
