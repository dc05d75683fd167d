"""Settings as hypothesis draws them: some sensible, some wrong, several at once."""

from __future__ import annotations

import dataclasses

from hypothesis import strategies as st

from config import TrainingConfig
from tests.faults.bad_input import WRONG

# Values with which a run may work, small enough to see it do so within a second or two.
SENSIBLE = {
    "batch_size": (1, 2, 3), "context_length": (2, 8, 33), "steps_phase1": (0, 1, 2), "steps_phase2": (0, 1, 2),
    "steps_phase3": (0, 1, 2), "d_model": (4, 8, 24), "n_layers": (1, 2), "n_heads": (1, 2, 3), "n_experts": (1, 2, 5),
    "top_k": (1, 2, 3), "scale_factor": (1, 1.5, 2, 2.5, 3), "extra_layers": (0, 1, 2), "noise_std": (0.5, 1.0, 3.0),
    "router_std": (0.0, 0.02, 1.0), "grow_when": ("fixed", "auto"), "grow_optimizer": ("grown", "asymmetric", "fresh"),
    "precision": ("fp32", "bf16"), "tokenizer": ("builtin",), "seed": (0, 1, 2**62), "eval_every": (1, 2, 50),
    "log_every": (1, 2, 50), "eval_batches": (1, 2, 9), "sample_tokens": (0, 1, 5), "warmup_steps": (0, 1, 10),
    "final_lr_share": (0.0, 0.5, 1.0), "save_every": (0.0, 1.0), "lr_phase1": (1e-4, 0.05), "lr_phase2": (1e-4, 0.03),
    "lr_phase3": (1e-4, 0.02), "weight_decay": (0.0, 0.1), "grad_clip": (0.1, 1.0), "balance_weight": (0.0, 0.3),
    "z_weight": (0.0, 1e-3), "start_phase": (1,), "ignore_memory_plan": (False,),
}  # fmt: skip


def flags() -> st.SearchStrategy[tuple[str, ...]]:
    """Up to eight flags; about one value in six is wrong for its field."""
    fields = {item.name: type(item.default) for item in dataclasses.fields(TrainingConfig)}
    drawn = [name for name in fields if name in SENSIBLE and fields[name] is not bool]

    def values(name: str) -> st.SearchStrategy[str]:
        sensible, wrong = st.sampled_from(SENSIBLE[name]).map(str), st.sampled_from(WRONG[fields[name]])
        return st.integers(0, 5).flatmap(lambda roll: wrong if roll == 0 else sensible)

    one = st.sampled_from(drawn).flatmap(
        lambda name: values(name).map(lambda value: f"--{name.replace('_', '-')}={value}")
    )
    return st.lists(one, min_size=1, max_size=8, unique_by=lambda flag: flag.split("=")[0]).map(tuple)
