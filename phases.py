"""The three phases of a run, and the names of the files that it keeps in its folder."""

from __future__ import annotations

MODEL_NAMES = {1: "dense_model.pt", 2: "moe_model_final.pt", 3: "large_moe_final.pt"}
HISTORY_NAME = "training_history.jsonl"
PICTURE_NAME = "training_curves.png"
REPORT_NAME = "report.html"
STATE_NAME = "run_state.pt"
LAUNCHERS_NAME = ".torchrun"  # who has begun the run, where ranks share it: one line for each rank

PHASE_TITLES = {1: "Dense Model", 2: "Mixture of Experts (Upcycling)", 3: "Large MoE (Bilateral Growth)"}
PHASE_ROWS = ("1 Dense", "2 MoE", "3 Large MoE")
PHASE_COLOURS = {1: "#4477aa", 2: "#ee7733", 3: "#228833"}
