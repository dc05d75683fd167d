"""Draws docs/phases.svg: what is copied, what is divided and what is new in each of the three phases.

    python docs/draw_phases.py

The picture has its own colours for light and for dark pages.
"""

from __future__ import annotations

from pathlib import Path

PICTURE = Path(__file__).with_name("phases.svg")
WIDTH, HEIGHT = 720, 640

STYLE = """
  text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; fill: #1f2328; font-size: 19px }
  .title { font-size: 23px; font-weight: 600 } .small { font-size: 17px }
  .copied { fill: #4477aa } .divided { fill: #ee7733 }
  .new { fill: #228833; fill-opacity: .25; stroke: #228833; stroke-width: 2.5; stroke-dasharray: 6 4 }
  .arrow { stroke: #59636e; stroke-width: 2.5; fill: none } .head { fill: #59636e }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .arrow { stroke: #9198a1 } .head { fill: #9198a1 }
    .copied { fill: #6ea8dc } .divided { fill: #ff9a5c } .new { fill: #5fc96f; stroke: #5fc96f; fill-opacity: .25 }
  }
"""

BLOCK, GAP = 19, 5  # heights
ATTENTION, ROUTER, EXPERT = 30, 11, 40  # widths at phase 1's d_model
MODEL_X = 265


def box(x: float, y: float, width: float, kind: str, height: float = BLOCK) -> str:
    return f'<rect class="{kind}" x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="2.5"/>'


def text(x: float, y: float, words: str, kind: str = "plain") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def row(x: float, y: float, parts: list[tuple[float, str]]) -> list[str]:
    """Boxes of one block beside each other: (width, kind) each."""
    drawn = []
    for width, kind in parts:
        drawn.append(box(x, y, width, kind))
        x += width + GAP
    return drawn


def dense_block(y: float) -> list[str]:
    return row(MODEL_X, y, [(ATTENTION, "copied"), (EXPERT, "copied")])


def moe_block(y: float) -> list[str]:
    return row(MODEL_X, y, [(ATTENTION, "copied"), (ROUTER, "new"), *[(EXPERT, "copied")] * 4])


def grown_block(y: float) -> list[str]:
    """Each box of `moe_block` and, beside it, its copy: both halves are divided."""
    narrow = [ATTENTION, ROUTER, *[EXPERT] * 4]
    drawn, x = [], MODEL_X
    for width in narrow:
        drawn += [box(x, y, width - 0.75, "divided"), box(x + width + 0.75, y, width - 0.75, "divided")]
        x += 2 * width + GAP
    return drawn


def identity_block(y: float) -> list[str]:
    return row(MODEL_X, y, [(2 * width, "new") for width in (ATTENTION, ROUTER, *[EXPERT] * 4)])


def model(y: float, blocks: list) -> list[str]:
    return [part for i, block in enumerate(blocks) for part in block(y + i * (BLOCK + GAP))]


def step(y: float, title: str, lines: list[str]) -> list[str]:
    """An arrow downwards and, beside it, what happens at the boundary."""
    bottom = y + 24 * (len(lines) + 1)
    arrow = f'<path class="arrow" d="M 40 {y - 8} V {bottom - 8}"/>'
    head = f'<path class="head" d="M 31 {bottom - 14} H 49 L 40 {bottom + 2} Z"/>'
    words = [text(70, y + 12, title, "title"), *(text(70, y + 38 + 24 * i, line) for i, line in enumerate(lines))]
    return [arrow, head, *words]


def legend(y: float) -> list[str]:
    drawn = []
    for x, kind, words in (
        (20, "copied", "kept or copied"),
        (215, "divided", "copied and divided"),
        (450, "new", "new"),
    ):
        drawn += [box(x, y, 30, kind), text(x + 40, y + 16, words)]
    return drawn


def labels(y: float, words: list[tuple[float, str]]) -> list[str]:
    return [text(MODEL_X + x, y, word, "small") for x, word in words]


def picture() -> str:
    parts = [
        *[text(20, 46, "1  Dense", "title"), text(20, 72, "trains first")],
        *labels(22, [(-56, "attention"), (36, "MLP")]),
        *model(30, [dense_block] * 3),
        *step(
            128,
            "Upcycling",
            ["Every expert starts as a copy of the MLP.", "The gates of the chosen experts sum to 1: same function."],
        ),
        *[text(20, 256, "2  Mixture", "title"), text(20, 282, "of experts (MoE)")],
        *labels(232, [(-56, "attention"), (28, "router"), (86, "experts")]),
        *model(240, [moe_block] * 3),
        *step(
            338,
            "Bilateral growth",
            [
                "Every feature is copied; what reads it is divided by the",
                "copies, with noise that cancels. New blocks begin by",
                "adding nothing: same function, same loss, same story.",
            ],
        ),
        *[text(20, 476, "3  Large MoE", "title"), text(20, 502, "wider and deeper")],
        *model(460, [grown_block, identity_block, grown_block, identity_block, grown_block]),
        *legend(600),
    ]
    label = "Three models, each drawn as its blocks: dense, mixture of experts, and the same wider and deeper"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">'
    return "\n".join([head, f"<style>{STYLE}</style>", *parts, "</svg>", ""])


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
    print(f"wrote {PICTURE}")
