"""What a phase writes down: steps, held-out losses, liveness, stories; printed and in the history."""

from __future__ import annotations

import dataclasses
import math
import time

import torch
from torch import Tensor
from tqdm import tqdm

from config import UserError
from models import Transformer, exact_arithmetic
from models.generation import continuations
from run.grow_when import Trial
from run.run import Run
from training.bad_steps import is_sound, require_sound_steps
from training.device import used_bytes
from training.evaluate import bits_per_byte, heldout_loss
from training.step import LayerFigures
from transfer.gradient_coverage import GradientCoverage
from transfer.liveness import expert_shares, liveness_report

SAMPLE_PROMPT = "Once upon a time"


class StepRows:
    """Holds the figures of steps on the device until a line is printed: reading them waits for it."""

    def __init__(self, run: Run, phase: int, rows: list[tuple] = (), seconds: float = 0.0):
        """`rows` and `seconds` are those of a phase that goes on after a stop."""
        self.run, self.phase, self.rows = run, phase, list(rows)
        self.start = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Since the phase began."""
        return time.perf_counter() - self.start

    @property
    def last_was_taken(self) -> bool:
        """Whether the last step was not skipped; asking waits for the device."""
        if not self.rows:
            return self.run.skipped_in_a_row == 0
        _, loss, grad_norm, *_ = self.rows[-1]
        return bool(is_sound(loss, grad_norm, self.run.config.grad_clip))

    def add(self, step: int, loss: Tensor, grad_norm: Tensor, lr: float) -> None:
        run = self.run
        self.rows.append((step, loss.detach(), grad_norm.detach(), lr, run.tokens_seen, run.flops_done, self.seconds))

    def write(self, layers: list[LayerFigures]) -> None:
        """Writes all rows to the history and prints the last, with what the routers did in its step."""
        for step, loss, grad_norm, lr, tokens, flops, seconds in self.rows:
            skipped = {} if is_sound(loss, grad_norm, self.run.config.grad_clip) else {"skipped": True}
            loss, grad_norm = loss.item(), grad_norm.item()
            is_last = step == self.rows[-1][0]
            figures = {"memory_bytes": used_bytes(self.run.device)} if is_last else {}
            figures |= routing_figures(layers) if is_last and layers else {}
            self.run.history.write(
                "step", phase=self.phase, step=step, loss=loss, lr=lr, grad_norm=grad_norm,
                tokens=tokens, flops=flops, seconds=round(seconds, 3), **skipped, **figures,
            )  # fmt: skip
            self.count(step, f"loss {loss}, gradient norm {grad_norm}", bool(skipped))
        tqdm.write(f"  step {step:>4} | loss {loss:.4f} | {seconds:.1f}s")
        self.rows.clear()

    def count(self, step: int, figures: str, is_skipped: bool) -> None:
        """Raises UserError after too many skipped steps in a row."""
        run = self.run
        run.skipped_steps += is_skipped
        run.skipped_in_a_row = run.skipped_in_a_row + 1 if is_skipped else 0
        if is_skipped:
            tqdm.write(f"  step {step:>4} | skipped: {figures}")
        require_sound_steps(run.skipped_in_a_row, self.phase, step, figures, run.config)


def require_finite(run: Run, phase: int, step: int, loss: float) -> None:
    """Raises UserError where training has run away, before anything of it is saved."""
    if not math.isfinite(loss):
        raise UserError(
            f"phase {phase}, step {step}: held-out loss {loss}; the state saved before is whole. "
            f"Go on with --resume --lr-phase{phase} {run.config.learning_rate(phase) / 2:g}"
        )


def routing_figures(layers: list[LayerFigures]) -> dict:
    """Balance and z-loss averaged over layers, and each layer's shares of slots by expert."""
    return {
        "balance_loss": torch.stack([layer.load_balancing_loss for layer in layers]).mean().item(),
        "z_loss": torch.stack([layer.z_loss for layer in layers]).mean().item(),
        "expert_shares": [[round(share, 4) for share in layer] for layer in expert_shares(layers)],
    }


def record_evaluation(run: Run, phase: int, step: int, model: Transformer) -> float:
    """Measures, prints and records the held-out loss in nats a token, and returns it."""
    loss = heldout_loss(model, run.heldout)
    require_finite(run, phase, step, loss)
    bits = bits_per_byte(loss, run.data.bytes_per_token)
    tqdm.write(f"  step {max(step, 0):>4} | held-out loss {loss:.4f} | {bits:.3f} bits per byte")
    run.history.write("eval", phase=phase, step=step, tokens=run.tokens_seen, loss=loss, bits_per_byte=bits)
    return loss


def record_liveness(
    run: Run, phase: int, model: Transformer, steps: int, coverage: GradientCoverage | None = None
) -> None:
    """Prints and records whether the clones of the boundary before `phase` have parted, after `steps` of training."""
    report = liveness_report(model, run.plan.models[phase - 2], run.heldout[0], coverage)
    tqdm.write(f"  Liveness after {steps} steps of phase {phase}:")
    for line in report.summary():
        tqdm.write(f"  {line}")
    run.history.write("liveness", phase=phase, steps=steps, **dataclasses.asdict(report))


def record_trial(run: Run, phase: int, step: int, trial: Trial) -> None:
    """Prints and records what a trial growth said, and why."""
    tqdm.write(f"  step {step:>4} | grow? {trial.reason}")
    run.history.write("trial", phase=phase, step=step, pays=trial.pays, **dataclasses.asdict(trial))


def sample_prompt(run: Run) -> list[int]:
    """Token ids of the fixed prompt, or of as much of its end as the context holds."""
    return run.data.tokenizer.encode_ordinary(SAMPLE_PROMPT)[-run.config.context_length :]


def continuation(run: Run, model: Transformer) -> list[int]:
    """Token ids with which the model greedily continues the fixed prompt, as far as its context has room.

    It computes in the weights' precision, so that a model and its grown self tell the same story.
    """
    with exact_arithmetic(model):
        return continuations(model, [sample_prompt(run)], run.config.sample_tokens, run.data.end_of_text)[0]


def tell_story(run: Run, phase: int, model: Transformer) -> None:
    """Prints and records a short greedy story."""
    if run.config.sample_tokens == 0:
        return
    ids = continuation(run, model)
    story = SAMPLE_PROMPT + run.data.tokenizer.decode(ids)
    print(f"\n  Story after phase {phase}:\n    " + story.replace("\n", "\n    "))
    run.history.write("sample", phase=phase, prompt=SAMPLE_PROMPT, story=story, token_ids=ids)
