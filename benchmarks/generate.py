"""What the KV cache gives: tokens per second with it, against computing the whole text again for each token.

    python -m benchmarks.generate --preset tiny --json generate.json
    python -m benchmarks.generate --preset reference --phases 1,2

One text, random weights and ids, fp32, greedy. "At" is the speed at which the last of --tokens tokens is found: both
contenders then know the same text, and find the same token. With --story, also the whole text from its
fourth token on, told once by each.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

import torch

from benchmarks.measuring import (
    VOCAB_SIZE,
    command_parser,
    exit_code,
    int_list,
    machine,
    positive_int,
    seconds_of,
    table,
    time_interleaved,
    write_json,
)
from config import PRESETS, UserError
from models import Transformer
from models.generation import continuations
from training.device import check_model, pick_device

NAMES = {1: "dense", 2: "MoE", 3: "large MoE"}
PROMPT_TOKENS = 4
NO_TOKEN = -1  # an end of text that no model comes to


@torch.no_grad()
def recomputed(model: Transformer, prompt: list[int], n_tokens: int, end_of_text: int) -> list[int]:
    """What `continuations` finds for one prompt, without a cache: the definition."""
    ids = list(prompt)
    while len(ids) < len(prompt) + n_tokens:
        hidden_BTD, _ = model.hidden(torch.tensor([ids], device=model.device))
        token = model.unembed(hidden_BTD[0, -1]).argmax().item()
        if token == end_of_text:
            break
        ids.append(token)
    return ids[len(prompt) :]


def finders(model: Transformer, ids: list[int]) -> dict[str, Callable[[], int]]:
    """Both ways to the token after `ids`; the cache holds all of them but the last."""
    with torch.no_grad():
        cache = model.new_cache(1, len(ids))
        model.hidden(torch.tensor([ids[:-1]], device=model.device), cache)

    @torch.no_grad()
    def cached() -> int:
        cache.cut([len(ids) - 1])
        hidden_BTD, _ = model.hidden(torch.tensor([ids[-1:]], device=model.device), cache)
        return model.unembed(hidden_BTD[0, -1]).argmax().item()

    return {"cached": cached, "recomputed": lambda: recomputed(model, ids, 1, NO_TOKEN)[0]}


def measure(model: Transformer, name: str, n_tokens: int, tells_story: bool) -> dict:
    """One row of figures.

    Raises:
        UserError: the two ways find different tokens.
    """
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (n_tokens,), generator=generator).tolist()
    ways = finders(model, ids)
    if ways["cached"]() != ways["recomputed"]():
        raise UserError(f"{name}: the cache finds another token than computing everything again")
    timings = time_interleaved(ways, model.device)
    row = {"model": name, "width": model.config.d_model, "layers": model.config.n_layers}
    row |= {f"{way} tokens/s": 1 / timings[way].seconds for way in ways}
    row["ratio"] = timings["recomputed"].seconds / timings["cached"].seconds
    row["spread"] = max(timing.spread for timing in timings.values())
    if tells_story:
        n_new = n_tokens - PROMPT_TOKENS
        prompt = ids[:PROMPT_TOKENS]
        seconds = {
            "cached": seconds_of(lambda: continuations(model, [prompt], n_new, NO_TOKEN), 1, model.device),
            "recomputed": seconds_of(lambda: recomputed(model, prompt, n_new, NO_TOKEN), 1, model.device),
        }
        row |= {f"story, {way} tokens/s": n_new / seconds[way] for way in seconds}
        row["story, ratio"] = seconds["recomputed"] / seconds["cached"]
    return row


def run(given: list[str] | None) -> None:
    parser = command_parser("generate", __doc__.splitlines()[0])
    parser.add_argument("--preset", choices=list(PRESETS), default="tiny", help="whose geometry, default tiny")
    parser.add_argument("--phases", type=int_list, default=[1, 2, 3], help="default 1,2,3")
    parser.add_argument("--tokens", type=positive_int, default=256, help="length of the text, default 256")
    parser.add_argument("--story", action="store_true", help="time whole texts, too: minutes")
    parser.add_argument("--device", default="cpu", help="default cpu")
    arguments = parser.parse_args(given)
    if not set(arguments.phases) <= set(NAMES):
        parser.error(f"--phases {','.join(map(str, arguments.phases))}: there are phases 1, 2 and 3")
    if arguments.tokens <= PROMPT_TOKENS:
        parser.error(f"--tokens {arguments.tokens}: must be more than the prompt's {PROMPT_TOKENS}")
    device = pick_device(arguments.device)
    settings = dataclasses.replace(PRESETS[arguments.preset], context_length=arguments.tokens)
    geometries = settings.phase_geometries(VOCAB_SIZE[arguments.preset])
    rows = []
    for phase in arguments.phases:
        model = check_model(geometries[phase - 1]).to(device)
        rows.append(measure(model, NAMES[phase], arguments.tokens, arguments.story))
    print(table(rows))
    write_json(arguments.json, {"machine": machine(device), "rows": rows})


def main(arguments: list[str] | None = None) -> int:
    return exit_code(run, arguments)


if __name__ == "__main__":
    sys.exit(main())
