"""Everything that can be set, in the order in which people need it.

`TrainingConfig` is the page to edit. Each field is also a command-line flag (`steps_phase1` is `--steps-phase1`), and
the docstring under it is that flag's help; settings.py says how they are read. Each of the three phases has a geometry
(model_config.py), which is derived from a `TrainingConfig`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from model_config import ModelConfig
from phases import PHASES
from settings import UserError, read_settings

# Times the factors of an optimizer it is still a number in fp32.
LARGEST_NUMBER = 1e36
LONGEST_SAMPLE = 10_000


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run. The defaults are the `reference` preset.

    Raises:
        UserError: from `validate`, naming every problem at once.
    """

    # == Run ==
    preset: str = "reference"
    """Where the other defaults come from; left out: reference on CUDA and MPS, tiny on a CPU."""
    checkpoint_dir: str = "checkpoints"
    """Folder for the three models, the history and the plot."""
    overwrite: bool = False
    """Delete the run that checkpoint_dir holds already. It goes when this one starts; without overwrite, or resume,
    such a folder is refused."""
    resume: bool = False
    """Go on with the run in checkpoint_dir, where it was saved last. Its settings hold; those given beside --resume
    change them where they still can."""
    start_phase: Literal[1, 2, 3] = 1
    """Phase to begin with. 2 or 3 begins there with the model of the phase before, dense_model.pt or
    moe_model_final.pt in checkpoint_dir, which decides geometry and tokenizer, and a fresh optimizer."""
    save_every: float = 5.0
    """Minutes between two saved states (0 or more). More where saving would take over 5 % of the run's time. The
    end of a phase is saved in any case. Usual: 1 to 30."""
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    """Where to train. auto takes cuda, then mps, then cpu."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Arithmetic of the matrix products. auto times bf16 against fp32 and takes the faster if it agrees. Weights,
    norms, router and loss stay fp32."""
    seed: int = 0
    """Weights, batch order and growth noise all follow from it (0 or more)."""

    # == Size and time (out of memory: lower batch_size first) ==
    batch_size: int = 8
    """Sequences per step (at least 1). Usual: 4 to 64 on one device; halve it when out of memory."""
    context_length: int = 256
    """Tokens per sequence (at least 1). Usual: 128 to 1024."""
    steps_phase1: int = 100
    """Steps of phase 1, the dense model (0 or more). Usual: 100 for a look, thousands for good stories."""
    steps_phase2: int = 100
    """Steps of phase 2, the mixture of experts (0 or more)."""
    steps_phase3: int = 100
    """Steps of phase 3, the grown mixture of experts (0 or more)."""
    accumulate: int = 1
    """Parts into which each batch is split (at least 1). They take turns in memory, and their gradients add up.
    Usual: 1; 2 to 16 when the batch does not fit."""
    memory: Literal["auto", "full", "lean"] = "auto"
    """How memory is used: lean is smaller, full the fastest. lean: matrices move in the backward pass, each gradient
    is freed at once, momentum in bf16, experts' hidden units computed twice. auto: lean where full will not fit."""
    ignore_memory_plan: bool = False
    """Train although the memory plan says that it will not fit."""

    # == Model ==
    architecture: Literal["neox", "llama"] = "neox"
    """Which family the model is of. neox: LayerNorm, GELU and biases, as GPT-NeoX. llama: RMSNorm, SwiGLU and no biases;
    its mixture of experts leaves as a stock Mixtral."""
    d_model: int = 832
    """Width of the dense model; a multiple of n_heads. Usual: 128 to 1024; lower it when steps are slow."""
    n_layers: int = 7
    """Blocks of the dense model. Usual: 4 to 12."""
    n_heads: int = 8
    """Attention heads of the dense model; d_model / n_heads has to be even. Usual: d_model / 64 to d_model / 32."""
    n_experts: int = 8
    """Experts per layer from phase 2 on (at least 1). Usual: 4 to 16."""
    top_k: int = 2
    """Experts that each token uses (at least 1). Usual: 2. 1 is for a single expert: among several its gate would always
    be 1, and the language loss would teach the router nothing."""

    # == Growth ==
    scale_factor: float = 2.0
    """Width factor of phase 3: 2 doubles d_model and heads. 1.5 is the way out of an out-of-memory, 1 leaves the
    width. Usual: 1.5 to 3."""
    extra_layers: int = 4
    """Identity blocks that phase 3 inserts, spread evenly. 0 leaves the depth. Usual: 0 to the number of layers that
    there are."""
    noise_std: float = 1.0
    """Symmetry-breaking noise, as a share of each grown weight's own standard deviation (0 or more). It cancels, so
    its size costs no exactness; 0 would keep clones equal for ever. Usual: 0.5 to 2."""
    router_std: float = 0.02
    """Standard deviation of the routers that upcycling makes (0 or more). 0 would send every token to the same
    experts. Usual: 0.01 to 0.1."""
    grow_when: Literal["fixed", "auto"] = "fixed"
    """Whether to grow. fixed: always, by the steps given. auto: never; all FLOPs that those steps cost go to one size, phase
    2's or phase 3's, whichever suits them. It has all steps in phase 3, at 0.8 of lr_phase1, which falls to zero. --plan
    tells which."""
    grow_optimizer: Literal["grown", "asymmetric", "fresh"] = "grown"
    """What the optimizer's moments become. grown with the weights, asymmetric (later clones start from zero), fresh."""
    check_tolerance: float = 1e-4
    """Largest relative drift that the growth checks accept (above 0). Usual: 1e-5 to 1e-3."""
    ignore_failed_checks: bool = False
    """Go on after a failed growth check (otherwise the run stops with exit code 3)."""

    # == Data ==
    data: str = "auto"
    """auto, tinystories, builtin, or a PATH to your own stories. auto: TinyStories from the hub, else the built-in
    stories. A PATH leads to .txt with <|endoftext|> between stories, or .jsonl / .parquet with a column text (or story)."""
    valid_data: str = ""
    """Held-out stories for --data PATH. Without it one story in twenty is held out."""
    tokenizer: str = "auto"
    """gpt2 (50,257 ids), builtin, our own (4,097), or the PATH of a tokenizer.json. auto: that of the model with which
    --start-phase begins, else builtin for the built-in stories and gpt2, where it can be had, for others."""
    cache_dir: str = "data/cache"
    """Folder for tokenised stories."""

    # == Optimizer (loss spike: halve the learning rate of that phase) ==
    lr_phase1: float = 0.05
    """Peak learning rate of phase 1 (above 0). It is Muon's, for matrices, and the same for every width; AdamW moves
    the rest with a quarter of it and less. Usual: 0.01 to 0.1; halve it after a loss spike."""
    lr_phase2: float = 0.03
    """Peak learning rate of phase 2 (above 0). Usual: half of phase 1 or a little more."""
    lr_phase3: float = 0.02
    """Peak learning rate of phase 3 (above 0). Usual: half of phase 2 or a little more."""
    warmup_steps: int = 5
    """Steps over which each phase rises to its peak (0 or more). It rises from zero, or from where the phase before
    ended, for the first 40 % of the phase at the longest. Usual: 5 to 100."""
    final_lr_share: float = 0.1
    """Where the last 60 % of each phase fall to, as a share of its peak (between 0 and 1). They fall in a straight
    line. Usual: 0 to 0.3."""
    weight_decay: float = 0.1
    """Decay of matrices (0 or more). Embedding, biases, norms and routers have none. Usual: 0 to 0.1."""
    grad_clip: float = 1.0
    """Largest norm of the whole gradient (above 0). Lean memory clips by the norm of the step before. Usual: 0.5 to
    2."""
    balance_weight: float = 0.3
    """Weight of the load-balancing loss (0 or more). At 0.1 single experts fell to 1 % of the tokens. Usual: 0.1 to
    0.5; raise it when an expert runs empty."""
    z_weight: float = 1e-3
    """Weight of the router's z-loss (0 or more). Usual: 0 to 1e-2."""

    # == Reporting ==
    log_every: int = 10
    """Steps between two printed lines (at least 1). Every step is in the history. Usual: 1 to 100."""
    eval_every: int = 50
    """Steps between two held-out losses (at least 1). Usual: 10 to 500."""
    eval_batches: int = 4
    """Held-out batches per measurement, the same ones every time (at least 1). Usual: 4 to 64; more are steadier and
    slower."""
    sample_tokens: int = 48
    """Length of the story printed after each phase, in tokens (0 or more). 0 prints none. Usual: 0 to 200."""
    tensorboard: bool = False
    """Write event files to checkpoint_dir/tensorboard as well (pip install tensorboard)."""
    wandb: bool = False
    """Send the history to Weights & Biases as well (pip install wandb)."""

    def validate(self) -> None:
        """Raises UserError naming every field that cannot work."""
        problems = []

        def require(holds: bool, name: str, rule: str):
            if not holds:
                problems.append(f"{name} is {getattr(self, name)!r}, {rule}")

        for name, setting in SETTINGS.items():
            value, kind = getattr(self, name), setting.kind
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UserError(f"{name} is {value!r}, must be of type {kind.__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{name} is {value}, must be a finite number")
            elif kind is float and value > LARGEST_NUMBER:
                problems.append(f"{name} is {value}, must be at most {LARGEST_NUMBER:g}")
            rule = setting.rule_broken_by(value)
            require(not rule, name, rule)
        require(
            self.tokenizer in ("auto", "gpt2", "builtin") or self.tokenizer.endswith(".json"),
            "tokenizer",
            "must be auto, gpt2, builtin or the path of a tokenizer.json",
        )
        require(self.preset in PRESETS, "preset", f"must be one of {', '.join(PRESETS)}")
        require(self.sample_tokens <= LONGEST_SAMPLE, "sample_tokens", f"must be at most {LONGEST_SAMPLE:,}")
        require(self.seed < 2**63, "seed", "must be below 2**63")
        require(self.accumulate <= self.batch_size, "accumulate", f"must be at most batch_size, {self.batch_size}")
        require(
            self.accumulate == 1 or self.memory != "lean",
            "accumulate",
            "but with memory 'lean' matrices move in the backward pass, before a second part could add its gradients; "
            "give --accumulate 1, or --memory full",
        )
        require(
            self.top_k > 1 or self.n_experts <= 1,
            "top_k",
            "with which no router learns: gates are a softmax over the chosen logits, and over one it is always 1, so that "
            "the language loss has no gradient there; give --top-k 2",
        )
        require(
            self.start_phase == 1 or self.grow_when == "fixed",
            "grow_when",
            f"but with start_phase {self.start_phase} nobody knows what was trained before; give --grow-when fixed",
        )
        require(not (self.resume and self.overwrite), "overwrite", "which deletes the run that resume goes on with")
        if not problems:
            try:
                self.phase_geometries(vocab_size=50_257)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError("; ".join(problems))

    def dense_geometry(self, vocab_size: int, tokenizer: str = "") -> ModelConfig:
        """The model of phase 1. A Llama's three matrices of an MLP have as many hidden units, 8/3 of its width and up to
        a multiple of 64, as give them the parameters of NeoX's two."""
        is_llama = self.architecture == "llama"
        return ModelConfig(
            vocab_size,
            self.d_model,
            self.n_layers,
            self.n_heads,
            context_length=self.context_length,
            tokenizer=tokenizer,
            architecture=self.architecture,
            hidden_ratio=-(-self.d_model // 24) * 64 / self.d_model if is_llama else ModelConfig.hidden_ratio,
        )

    def phase_geometries(self, vocab_size: int, tokenizer: str = "") -> tuple[ModelConfig, ...]:
        """The models of all phases."""
        return self.geometries_from(self.dense_geometry(vocab_size, tokenizer))

    def geometries_from(self, dense: ModelConfig) -> tuple[ModelConfig, ...]:
        """The models of all phases where the first is `dense`."""
        models = [dense]
        for phase in PHASES[1:]:
            if phase.made_by == "upcycle":
                models.append(models[-1].upcycled(self.n_experts, self.top_k))
            else:
                models.append(models[-1].grown(self.scale_factor, self.extra_layers))
        return tuple(models)

    def steps(self, phase: int) -> int:
        return getattr(self, f"steps_phase{phase}")

    def learning_rate(self, phase: int) -> float:
        return getattr(self, f"lr_phase{phase}")

    @property
    def total_steps(self) -> int:
        return sum(self.steps(phase.number) for phase in PHASES)


SETTINGS = read_settings(TrainingConfig)
PRESETS = {
    "reference": TrainingConfig(),
    "tiny": TrainingConfig(
        preset="tiny",
        precision="fp32",
        # 50 k gpt2 ids would take eight times the parameters of the rest of so small a model.
        tokenizer="builtin",
        batch_size=8,
        context_length=128,
        steps_phase1=200,
        steps_phase2=120,
        steps_phase3=120,
        d_model=128,
        n_layers=4,
        n_heads=4,
        extra_layers=2,
        # Batches half as large as the reference's: at its rates the loss rises for a while after a boundary.
        lr_phase2=0.02,
        lr_phase3=0.01,
        warmup_steps=10,
        eval_every=40,
    ),
}
