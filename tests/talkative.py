"""Random models whose stories do not repeat one token for ever, and what such a story has to be."""

import dataclasses

import torch

from config import ModelConfig
from models import Transformer
from models.sampling import Sampling
from training.self_check import check_model

SMALL = ModelConfig(vocab_size=101, d_model=32, n_layers=2, n_heads=4, context_length=24)
BUILTIN = dataclasses.replace(SMALL, vocab_size=4097, context_length=32, tokenizer="builtin")
NEVER = -1
EXPERTS = {"dense": 0, "moe": 8}
PROMPTS = [[1, 2, 3], [7], [5, 6, 7, 8, 9, 10, 11], [3, 2, 1]]
DRAWN = Sampling(temperature=0.05)  # where logits are as small as those of a random model


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


def talkative_model(config: ModelConfig = SMALL, n_experts: int = 0):
    """Random, with weights so large that its stories do not repeat one token for ever."""
    model = check_model(dataclasses.replace(config, n_experts=n_experts))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith("blocks") and parameter.ndim > 1:
                parameter.mul_(3)
    return model


def tokens(batch: int = 2, length: int = 24) -> torch.Tensor:
    return torch.randint(SMALL.vocab_size, (batch, length), generator=torch.Generator().manual_seed(0))
