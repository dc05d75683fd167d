"""What a phase writes down: steps, held-out losses, stories; printed and in the history."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from tqdm import tqdm

from config import UserError
from models import Transformer, exact_arithmetic
from models.generation import continuations
from phases import Phase
from report.numbers import per_second
from run.run import Run
from training.bad_steps import is_sound, require_sound_steps
from training.device import used_bytes
from training.heldout import bits_per_byte, heldout_loss
from training.step import LayerFigures
from transfer.liveness import expert_shares

SAMPLE_PROMPT = "Once upon a time"


class StepRows:
    """Holds the figures of steps on the device until a line is printed: reading them waits for it.

    Args:
        rows: those that a phase had pending when it was stopped.
    """

    def __init__(self, run: Run, phase: Phase, rows: list[tuple] = ()):
        self.run, self.phase, self.rows = run, phase, list(rows)
        self._layers: list[LayerFigures] = []
        self._tokens, self._seconds_of_steps = run.tokens_seen, run.seconds_of_steps

    @property
    def last_was_taken(self) -> bool:
        """Whether the last step was not skipped; asking waits for the device."""
        if not self.rows:
            return self.run.progress.skipped_in_a_row == 0
        _, loss, grad_norm, *_ = self.rows[-1]
        return bool(is_sound(loss, grad_norm, self.run.config.grad_clip))

    def add(self, step: int, rate: float, loss: Tensor, layers: list[LayerFigures], grad_norm: Tensor) -> None:
        run, seconds = self.run, self.run.progress.phase_seconds
        self.rows.append((step, loss, grad_norm, rate, run.tokens_seen, run.progress.flops, seconds))
        self._layers = layers

    def write(self) -> None:
        """Writes all rows to the history and prints the last, with what the routers did in its step."""
        if not self.rows:
            return
        for step, loss, grad_norm, lr, tokens, flops, seconds in self.rows:
            skipped = {} if is_sound(loss, grad_norm, self.run.config.grad_clip) else {"skipped": True}
            loss, grad_norm = loss.item(), grad_norm.item()
            is_last = step == self.rows[-1][0]
            figures = {"memory_bytes": used_bytes(self.run.device)} if is_last else {}
            figures |= routing_figures(self._layers) if is_last and self._layers else {}
            self.run.history.write(
                "step", phase=self.phase.number, step=step, loss=loss, lr=lr, grad_norm=grad_norm,
                tokens=tokens, flops=flops, seconds=round(seconds, 3), **skipped, **figures,
            )  # fmt: skip
            self._count(step, f"loss {loss}, gradient norm {grad_norm}", bool(skipped))
        tqdm.write(f"  step {step:>4} | loss {loss:.4f} | {seconds:.1f}s{self._speed()}")
        self.rows.clear()

    def _speed(self) -> str:
        """Tokens a second since the last line, in steps alone; empty where there is nothing to divide by."""
        tokens, self._tokens = self.run.tokens_seen - self._tokens, self.run.tokens_seen
        before, self._seconds_of_steps = self._seconds_of_steps, self.run.seconds_of_steps
        seconds = self._seconds_of_steps - before
        return f" | {per_second(tokens / seconds)} tokens/s" if seconds > 0 else ""

    def _count(self, step: int, figures: str, is_skipped: bool) -> None:
        """Raises UserError after too many skipped steps in a row."""
        progress = self.run.progress
        progress.count_skips(is_skipped)
        if is_skipped:
            tqdm.write(f"  step {step:>4} | skipped: {figures}")
        require_sound_steps(progress.skipped_in_a_row, self.phase.number, step, figures, self.run.config)


def require_finite(run: Run, phase: Phase, step: int, loss: float) -> None:
    """Raises UserError where training has run away, before anything of it is saved."""
    if not math.isfinite(loss):
        raise UserError(
            f"phase {phase.number}, step {step}: held-out loss {loss}; the state saved before is whole. "
            f"Go on with --resume --lr-phase{phase.number} {run.config.learning_rate(phase.number) / 2:g}"
        )


def routing_figures(layers: list[LayerFigures]) -> dict:
    """Balance and z-loss averaged over layers, and each layer's shares of slots by expert."""
    return {
        "balance_loss": torch.stack([layer.load_balancing_loss for layer in layers]).mean().item(),
        "z_loss": torch.stack([layer.z_loss for layer in layers]).mean().item(),
        "expert_shares": [[round(share, 4) for share in layer] for layer in expert_shares(layers)],
    }


def record_heldout_loss(run: Run, phase: Phase, step: int, model: Transformer) -> float:
    """Measures, prints and records the held-out loss in nats a token, and returns it."""
    with run.aside():
        loss = heldout_loss(model, run.heldout)
    require_finite(run, phase, step, loss)
    bits = bits_per_byte(loss, run.data.bytes_per_token)
    tqdm.write(f"  step {max(step, 0):>4} | held-out loss {loss:.4f} | {bits:.3f} bits per byte")
    run.history.write("eval", phase=phase.number, step=step, tokens=run.tokens_seen, loss=loss, bits_per_byte=bits)
    return loss


def sample_prompt(run: Run) -> list[int]:
    """Token ids of the fixed prompt, or of as much of its end as the context holds.

    Raises:
        UserError: the tokenizer makes nothing of it.
    """
    ids = run.data.tokenizer.encode_ordinary(SAMPLE_PROMPT)[-run.config.context_length :]
    if not ids:
        raise UserError(f"the tokenizer makes no token of {SAMPLE_PROMPT!r}")
    return ids


def continuation(run: Run, model: Transformer) -> list[int]:
    """Token ids with which the model greedily continues the fixed prompt, as far as its context has room.

    It computes in the weights' precision, so that a model and its grown self tell the same story.
    """
    with exact_arithmetic(model):
        return continuations(model, [sample_prompt(run)], run.config.sample_tokens, run.data.end_of_text)[0]


def tell_story(run: Run, phase: Phase, model: Transformer) -> None:
    """Prints and records a short greedy story."""
    if run.config.sample_tokens == 0:
        return
    ids = continuation(run, model)
    story = SAMPLE_PROMPT + run.data.tokenizer.decode(ids)
    print(f"\n  Story after phase {phase.number}:\n    " + story.replace("\n", "\n    "))
    run.history.write("sample", phase=phase.number, prompt=SAMPLE_PROMPT, story=story, token_ids=ids)
