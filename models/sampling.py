"""Which token comes next: the likeliest one, or one drawn among the likely.

Shape letters: B batch, V vocabulary, k candidates.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from config import UserError

# Below it no draw can tell a temperature from 0: logits that differ at all in fp32 differ by hundreds.
COLDEST = 1e-6


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: with which temperature, among the `top_k` likeliest, of these the fewest that have `top_p`.

    `temperature` 0 takes the likeliest token every time; `top_k` 0 and `top_p` 1 leave all tokens in.

    Raises:
        UserError: values that no token could be drawn with; the text names every problem.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self):
        problems = []
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            problems.append(f"temperature is {self.temperature:g}, must be a finite number of 0 or more")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}, must be 0 (all tokens) or more")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p:g}, must be above 0 and at most 1")
        if problems:
            raise UserError("; ".join(problems))

    def choose(self, logits_BV: Tensor, generators: list[torch.Generator]) -> list[int]:
        """The next token of each row.

        Args:
            generators: one a row, on the CPU, so that a seed draws the same on every device. A row's draw depends
                on no other row.
        Raises:
            UserError: the logits are no numbers.
        """
        if not logits_BV.isfinite().all():
            raise UserError("the model's logits are not finite: its weights are damaged, or training ran away")
        if self.temperature < COLDEST:
            return logits_BV.argmax(-1).tolist()
        probabilities_BV = self.probabilities(logits_BV).cpu()
        return [
            torch.multinomial(probability_V, 1, generator=generator).item()
            for probability_V, generator in zip(probabilities_BV, generators)
        ]

    def probabilities(self, logits_BV: Tensor) -> Tensor:
        """What each token is drawn with, (B, V) in fp32 or better; 0 for those that are left out."""
        exact = torch.promote_types(logits_BV.dtype, torch.float32)
        # Less the largest before the division: a low temperature must not make them infinite.
        logits_BV = (logits_BV - logits_BV.amax(-1, keepdim=True)).to(exact) / self.temperature
        n_candidates = min(self.top_k or logits_BV.shape[-1], logits_BV.shape[-1])
        if n_candidates == logits_BV.shape[-1] and self.top_p == 1:
            return logits_BV.softmax(-1)
        best_Bk, token_Bk = logits_BV.topk(n_candidates)
        probability_Bk = best_Bk.softmax(-1)
        if self.top_p < 1:
            likelier_Bk = probability_Bk.cumsum(-1) - probability_Bk
            probability_Bk = probability_Bk.masked_fill(likelier_Bk >= self.top_p, 0)
            probability_Bk /= probability_Bk.sum(-1, keepdim=True)
        return torch.zeros_like(logits_BV).scatter_(-1, token_Bk, probability_Bk)


GREEDY = Sampling(temperature=0.0)
