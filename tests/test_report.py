"""report.html: what it says, that it needs nothing but itself, and that a browser shows all of it."""

import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest

from config import PRESETS, UserError
from phases import HISTORY_NAME, REPORT_NAME, STATE_NAME
from report import page
from report.__main__ import main
from report.axes import linear, logarithmic
from report.charts import MOST_POINTS, thinned
from report.heatmap import heatmaps, shade
from report.history import History
from report.numbers import duration, exponent, si
from report.page import write_report

CONFIG = {
    **{name: value for name, value in vars(PRESETS["tiny"]).items()},
    **{"d_model": 32, "n_heads": 2, "n_layers": 2, "extra_layers": 1, "n_experts": 4, "log_every": 5},
    **{"steps_phase1": 40, "steps_phase2": 30, "steps_phase3": 30},
}
CHECKS = {2: ("functional",), 3: ("rope", "router", "symmetry", "functional")}
STEP_FLOPS = {1: 1e9, 2: 2e9, 3: 9e9}
NEWER = ("flops", "memory_bytes")


def write_run(folder: Path, steps=(40, 30, 30), stop_after=None, without=(), failed="", story="Tom ran.", config=None):
    """A history as training writes it, of a run that may stop after (phase, step), or lack fields."""
    folder.mkdir(parents=True, exist_ok=True)
    history = History(folder / HISTORY_NAME)
    write_rows(history, steps, stop_after, without, failed, story, {**CONFIG, **(config or {})})
    history.close()
    return folder


def write_rows(history, steps, stop_after, without, failed, story, config):
    def write(event, **values):
        left_out = without if event == "step" else ()
        history.write(event, **{name: value for name, value in values.items() if name not in left_out})

    parameters = [{"total": n, "active": a, "idle_experts": 0} for n, a in ((1e6, 1e6), (4e6, 2e6), (2e7, 8e6))]
    data = {"source": "stories.txt", "tokenizer": "builtin"}
    write("run", torch="2.13", device="cpu", commit="0" * 40, config=config, data=data, parameters=parameters)
    taken, flops, loss = 0, 0.0, 8.0
    for phase, n_steps in enumerate(steps, 1):
        if phase < config["start_phase"]:
            taken, flops = taken + n_steps, flops + n_steps * STEP_FLOPS[phase]
            continue
        if phase > 1:
            write_boundary(write, phase, loss, failed, taken)
        n_layers = 2 if phase < 3 else 3
        for step in range(n_steps):
            taken, flops = taken + 1, flops + STEP_FLOPS[phase]
            loss = 3 + 5 * math.exp(-taken / (0.2 * sum(steps)))
            figures = {"memory_bytes": 10**9 * phase} if step % config["log_every"] == 0 else {}
            if phase > 1 and figures:
                figures |= {"balance_loss": 1.01, "z_loss": 4.0, "expert_shares": [[0.4, 0.3, 0.2, 0.1]] * n_layers}
            write("step", phase=phase, step=step, loss=loss + 0.1 * math.sin(step), lr=0.01, grad_norm=1.0,
                  tokens=1000 * taken, flops=flops, seconds=0.1 * (step + 1), **figures)  # fmt: skip
            if (step + 1) % 10 == 0 or step == n_steps - 1:
                write("eval", phase=phase, step=step, tokens=1000 * taken, loss=loss, bits_per_byte=loss / 3)
            if stop_after == (phase, step):
                return
        write("sample", phase=phase, prompt="Once", story=f"Once {story}", token_ids=[1])
    write("summary", flops=flops, skipped_steps=0, seconds=61.0, phase3_final=loss)


def write_boundary(write, phase, loss, failed, taken):
    jump = 0.5 if failed == "jump" else 1.2e-7
    write("boundary", from_phase=phase - 1, to_phase=phase, loss_before=loss, loss_after=loss + jump, jump=jump,
          bits_per_byte=1.0, same_story=failed != "story", tokens=1000 * taken)  # fmt: skip
    for check in CHECKS[phase]:
        reason = "the copies are locked" if failed == check else ""
        write("verification", to_phase=phase, check=check, passed=failed != check, reason=reason, tolerance=1e-4)
    cosines = [{"kind": "experts' up" if phase == 2 else "heads", "n_pairs": 4, "average": 1.0, "largest": 1.0,
                "largest_block": 0}]  # fmt: skip
    for n_steps in (0, 20):
        write("liveness", phase=phase, steps=n_steps, clone_cosines=cosines, effective_rank={"qkv": 0.9, "out": 0.8},
              identity_effective_rank=None, expert_entropies=[0.9, 0.8], coverage_steps=n_steps or None,
              new_parameters=n_steps and 1000, never_touched_share=0.25 if n_steps else None)  # fmt: skip


class Reader(HTMLParser):
    """A page's tags and visible text; it fails where tags are not closed in order."""

    APART = ("td", "th", "dt", "dd", "span")
    VOID = ("meta", "link", "input", "br", "img", "path")

    def __init__(self, content: str):
        super().__init__()
        self.tags, self.text, self.open = [], "", []
        self.feed(content)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing, after {self.text[-60:]!r}"
        self.text += " " if tag in self.APART else ""

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data.replace("\N{NO-BREAK SPACE}", " ")

    def of(self, name: str) -> list[dict]:
        return [attributes for tag, attributes in self.tags if tag == name]


def read(folder: Path) -> Reader:
    return Reader((folder / REPORT_NAME).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    folder = write_run(tmp_path_factory.mktemp("runs") / "complete")
    write_report(folder)
    return folder


def test_the_first_screen_answers_the_five_questions(complete):
    text = read(complete).text
    first = " ".join(text[: text.index("What was trained")].split())
    for answer in (
        "Growth kept the function",
        "A dense model of 1.00 M parameters became a mixture of experts of 20.00 M, 8.00 M of them active per token",
        "trained on stories.txt. Largest jump in held-out loss 1.2 × 10⁻⁷ nats; 5 of 5 checks passed; the same story",
        "Final held-out loss 3.034",
        "Time 1 min 1 s",
        "Compute 370 GFLOP",
        "Tokens 100 k in 100 steps",
    ):
        assert answer in first


@pytest.mark.parametrize(
    "failed, said",
    [
        ("symmetry", "symmetry before phase 3"),
        ("functional", "functional before phase 2"),
        ("jump", "jump before phase 2"),
        ("story", "story before phase 2"),
    ],
)
def test_a_boundary_that_failed_is_the_first_thing_that_is_said(failed, said, tmp_path):
    folder = write_run(tmp_path / "run", failed=failed)
    write_report(folder)
    text = read(folder).text
    assert "Growth kept the function" not in text and "Growth failed: " in text
    assert said in text[: text.index("What was trained")]
    if failed == "symmetry":
        assert "✗ failed" in text and "the copies are locked" in text


def test_everything_asked_for_is_there(complete):
    reader = read(complete)
    labels = [attributes["aria-label"] for attributes in reader.of("div") if attributes.get("role") == "img"]
    for title in ("Loss over steps", "Loss over tokens", "Loss over compute", "Loss over time", "Learning rate",
                  "Gradient norm", "Throughput", "Memory", "Cosine between clones", "Effective rank"):  # fmt: skip
        assert any(label.startswith(f"{title}:") for label in labels), title
    assert [label for label in labels if label.startswith("Expert load")] == [
        f"Expert load in layer {layer} over training steps: at the end shares from 10.0\xa0% to 40.0\xa0%"
        for layer in (0, 1, 2)
    ]
    assert sum(label.startswith("Loss around the boundary") for label in labels) == 2
    for text in ("Tom ran.", "75.0 % of 1,000 new parameters had a gradient by step 20", "new in phase 3", "tolerance"):
        assert text in reader.text


def test_it_is_well_formed_and_can_be_heard(complete):
    reader = read(complete)
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {attributes["aria-labelledby"] for attributes in reader.of("section")} <= set(ids)
    assert len(reader.of("table")) == len(reader.of("caption"))
    assert all("aria-label" in attributes for _, attributes in reader.tags if attributes.get("role") == "img")
    levels = [int(tag[1]) for tag, _ in reader.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1 and all(b - a <= 1 for a, b in zip(levels, levels[1:]))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in reader.of("meta")


def borrowed(content: str) -> list[str]:
    """What a page would load, or run."""
    tags = {"script", "img", "iframe", "object", "embed", "audio", "video", "base", "form"}
    found = [tag for tag, _ in Reader(content).tags if tag in tags]
    for _, attributes in Reader(content).tags:
        found += [
            f"{name}={value}" for name, value in attributes.items() if name in ("src", "srcset") or name[:2] == "on"
        ]
        found += [value for name, value in attributes.items() if name == "href" and not value.startswith("data:")]
    return found + re.findall(r"url\(|@import|https?://", content)


def test_it_needs_nothing_but_itself(complete):
    content = (complete / REPORT_NAME).read_text(encoding="utf-8")
    assert borrowed(content) == []
    for addition in (
        '<script src="x"></script>',
        "<style>@import 'x';</style>",
        '<p onclick="x">a</p>',
        '<img src="x">',
        "<p style=\"background:url('x')\">a</p>",
        '<a href="http://x">a</a>',
    ):
        assert borrowed(content.replace("</main>", addition + "</main>"))


def test_what_a_model_or_a_user_wrote_is_text(tmp_path):
    evil = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{ 7 * 7 }}"
    folder = write_run(tmp_path / "a<b>c", story=evil, config={"data": evil, "checkpoint_dir": evil})
    other = write_run(tmp_path / "<i>", config={"data": "x" + evil})
    write_report(folder, other)
    reader = read(folder)
    assert borrowed((folder / REPORT_NAME).read_text(encoding="utf-8")) == []
    assert not reader.of("script") and not reader.of("img") and not [1 for tag, _ in reader.tags if tag == "b>c"]
    assert reader.text.count(evil) >= 5 and "a<b>c" in reader.text


def test_a_long_run_is_a_small_file(tmp_path):
    config = {"log_every": 10, **{f"steps_phase{n}": 34_000 for n in (1, 2, 3)}}
    folder = write_run(tmp_path / "long", steps=(34_000, 34_000, 34_000), config=config)
    assert (folder / HISTORY_NAME).stat().st_size > 15e6
    write_report(folder)
    assert (folder / REPORT_NAME).stat().st_size < 1e6


def test_thinning_keeps_spikes_and_ends():
    points = [(float(i), math.sin(i)) for i in range(50_000)]
    points[31_337] = (31_337.0, 40.0)
    kept = thinned(points)
    assert len(kept) <= MOST_POINTS and points[31_337] in kept and kept[0] == points[0] and kept[-1] == points[-1]
    assert kept == sorted(kept) and thinned(points[:100]) == points[:100]
    assert points[31_337] not in points[:: len(points) // MOST_POINTS], "every n-th point would lose it"


def test_an_older_history_leaves_figures_out_and_says_so(tmp_path):
    folder = write_run(tmp_path / "old", without=NEWER)
    write_report(folder)
    reader = read(folder)
    labels = " ".join(attributes.get("aria-label") or "" for attributes in reader.of("div"))
    assert "Loss over time" in labels and "Loss over compute" not in labels and "Memory" not in labels
    assert "before compute was counted step by step" in reader.text and "Not in this history: memory" in reader.text


def test_a_run_that_was_stopped_says_how_far_it_came_and_how_to_go_on(tmp_path):
    folder = write_run(tmp_path / "my run", stop_after=(2, 11))
    write_report(folder)
    assert "it came to step 12 of 30 in phase 2. It has no saved state" in read(folder).text
    (folder / STATE_NAME).write_bytes(b"")
    write_report(folder)
    text = read(folder).text
    assert f"python train_tinystories.py --resume --checkpoint-dir '{folder}'" in text
    assert "Growth kept the function so far" in text and "Held-out loss so far" in text and "complete" not in text[:200]


@pytest.mark.parametrize(
    "steps, stop_after", [((40, 30, 30), (1, 0)), ((0, 0, 0), None), ((0, 3, 0), None), ((1, 1, 1), None)]
)
def test_short_runs_have_a_page_as_well(steps, stop_after, tmp_path):
    write_report(write_run(tmp_path / "short", steps=steps, stop_after=stop_after))
    assert "Growth report" in read(tmp_path / "short").text


def test_a_run_that_began_with_a_later_phase(tmp_path):
    folder = write_run(tmp_path / "late", config={"start_phase": 3})
    content = write_report(folder).read_text(encoding="utf-8")
    text = " ".join(Reader(content).text.split())
    assert "A grown mixture of experts of 20.00 M parameters, trained on stories.txt" in text
    assert "tokens – – 30 k" in text and "compute, FLOP – – 270 G" in text and "Tokens 100 k in 30 steps" in text
    places = [float(x) for line in re.findall(r' d="(M[^"]*)"', content) for x in re.findall(r"M(-?[\d.]+) ", line)]
    assert min(places) >= 0 and max(places) <= 1000, "nothing is drawn beside its plot"


def test_a_run_of_one_row_has_a_page_as_well(tmp_path):
    folder = write_run(tmp_path / "young")
    lines = (folder / HISTORY_NAME).read_bytes().splitlines(keepends=True)
    (folder / HISTORY_NAME).write_bytes(lines[0])
    write_report(folder)
    assert "no step was recorded" in read(folder).text and "No step has been recorded yet" in read(folder).text


def test_skipped_steps_and_other_settings_are_told(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    history = History(folder / HISTORY_NAME)
    write_rows(history, (40, 30, 30), (2, 5), (), "", "", CONFIG)
    history.write("resumed", phase=2, step=6, changes={"lr_phase2": [0.02, 0.01], "torch": ["2.12", "2.13"]})
    nan = {"loss": float("nan"), "grad_norm": float("nan")}
    history.write("step", phase=2, step=6, **nan, lr=0.01, tokens=47_000, flops=1e11, seconds=0.7, skipped=True)
    history.close()
    write_report(folder)
    text = read(folder).text
    assert "Phase 2, step 6: went on with lr_phase2 0.02 → 0.01, torch 2.12 → 2.13" in text
    assert "Phase 2, step 6: skipped" in text


def test_beside_another_run(complete, tmp_path):
    other = write_run(tmp_path / "other", steps=(20, 20, 20), config={"seed": 7}, without=NEWER)
    page = write_report(shutil.copytree(complete, tmp_path / "first"), other)
    reader = Reader(page.read_text(encoding="utf-8"))
    text = " ".join(reader.text.split())
    assert "held-out loss after phase 3 3.0337 3.0337" in text and "seed 0 7" in text
    assert "held-out, other" in text
    assert "time 1 min 1 s 1 min 1 s × 1.00" in text and "compute, FLOP 370 G 240 G × 0.65" in text
    write_report(tmp_path / "first")
    assert "Beside another run" not in read(tmp_path / "first").text


def test_a_damaged_history_gets_one_line_and_the_page_stays(complete, tmp_path, capsys):
    folder = shutil.copytree(complete, tmp_path / "run")
    page_before = (folder / REPORT_NAME).read_bytes()
    content = (folder / HISTORY_NAME).read_bytes()
    (folder / HISTORY_NAME).write_bytes(content.replace(b'"lr": 0.01', b'"lr": 0.02', 1))
    for arguments, said in (
        ([folder], "its checksum is wrong"),
        ([complete, "--compare", folder], "its checksum is wrong"),
        ([tmp_path / "none"], "holds no run"),
        ([complete, "--compare", tmp_path], "holds no run"),
        ([complete, "--with", folder], "unknown flag --with"),
        ([], "required: DIR"),
    ):
        assert main([str(argument) for argument in arguments]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error
    assert (folder / REPORT_NAME).read_bytes() == page_before


def test_rows_of_another_version_get_one_line(tmp_path, capsys):
    folder = write_run(tmp_path / "run", without=("tokens",))
    assert main([str(folder)]) == 2
    assert re.fullmatch(
        r"error: .* cannot be shown \(KeyError: 'tokens'\); its history is whole\n", capsys.readouterr().err
    )


def test_a_full_disk_gets_one_line(complete, tmp_path, monkeypatch):
    folder = shutil.copytree(complete, tmp_path / "run")
    before = (folder / REPORT_NAME).read_bytes()

    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(page, "replacing", full)
    with pytest.raises(UserError, match="report.html: No space left on device; models and history are complete"):
        write_report(folder)
    assert (folder / REPORT_NAME).read_bytes() == before


def area(path: str) -> float:
    """Of a path of rectangles, as a share of the plot."""
    rectangles = re.findall(r"M([\d.]+) ([\d.]+)H([\d.]+)V([\d.]+)", path)
    return sum((float(x2) - float(x1)) * (float(y2) - float(y1)) for x1, y1, x2, y2 in rectangles) / 1e6


def test_a_heat_map_shows_each_expert_in_its_shade():
    shares = [(float(i), [[0.25] * 4, [0.7, 0.1, 0.1, 0.1]]) for i in range(10)]
    even, uneven = heatmaps(shares, linear("", [0.0, 9.0], exact=True))[0]
    assert set(even.paths) == {0} and area(even.paths[0]) == pytest.approx(1)
    assert set(uneven.paths) == {-3, 3} and area(uneven.paths[3]) == pytest.approx(0.25)
    assert [shade(share, 4) for share in (0.0, 0.0625, 0.125, 0.25, 0.5, 1.0)] == [-4, -4, -2, 0, 2, 4]


def test_a_layer_that_growth_moved_keeps_its_line_in_the_map():
    grown = [(float(i), [[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]) for i in range(5)]
    grown += [(float(i), [[0.7, 0.1, 0.1, 0.1], [0.25] * 4, [0.1, 0.1, 0.1, 0.7]]) for i in range(5, 10)]
    maps = heatmaps(grown, linear("", [0.0, 9.0], exact=True))[0]
    assert [each.note for each in maps] == ["", "new in phase 3", ""]
    assert maps[0].paths[3].startswith("M0 0H1000") and maps[2].paths[3].startswith("M0 750H1000")
    assert 0.4 < area(maps[1].paths[0]) < 0.6


def test_maps_of_a_large_model_are_few_and_small():
    shares = [(float(i), [[1 / 256] * 256] * 100) for i in range(50)]
    maps, n_layers = heatmaps(shares, linear("", [0.0, 49.0], exact=True))
    assert n_layers == 100 and len(maps) == 24 and maps[-1].layer == 99
    jagged = [(float(i), [[(e * 7919 + i) % 13 / 1536 for e in range(256)]] * 100) for i in range(50)]
    assert (
        sum(
            len(path)
            for each in heatmaps(jagged, linear("", [0.0, 49.0], exact=True))[0]
            for path in each.paths.values()
        )
        < 1e6
    )


def test_axes_hold_their_values_and_tick_inside():
    for axis, values in (
        (linear("", [3.0, 3.0]), [3.0]),
        (linear("", [0.0]), [0.0]),
        (linear("", [1.0, 4.0], low=0.0), [0.0, 1.0, 4.0]),
        (logarithmic("", [3.1, 8.3]), [3.1, 8.3]),
        (logarithmic("", [3.1]), [3.1]),
        (logarithmic("", [0.02, 7.0]), [0.02, 7.0]),
        (logarithmic("", [1e-9, 1e9]), [1e-9, 1e9]),
    ):
        assert all(0 <= axis.share(value) <= 1 for value in values)
        assert 2 <= len(axis.ticks) <= 8 and all(0 <= share <= 1 for share, _ in axis.placed_ticks)
        assert len({text for _, text in axis.ticks}) == len(axis.ticks)


def test_numbers_read_well():
    assert [si(n) for n in (0, 999.6, 16_642_096_496_640, 5e26)] == ["0", "1\xa0k", "16.6\xa0T", "5e+05\xa0Z"]
    assert (exponent(-1.19e-7), exponent(0.0), exponent(math.nan)) == ("−1.2\xa0×\xa010⁻⁷", "0", "not finite")
    assert [duration(s) for s in (0.4, 61, 3661, 90_000)] == [
        "0\xa0s",
        "1\xa0min 1\xa0s",
        "1\xa0h 1\xa0min",
        "1\xa0d 1\xa0h",
    ]
