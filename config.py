"""Everything that can be set, in the order in which people need it.

`TrainingConfig` is the page to edit: each field carries its help text, and each is
also a command-line flag (`steps_phase1` is `--steps-phase1`). `ModelConfig` is the
geometry of one model; the three phases have one each, derived from a `TrainingConfig`.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from fractions import Fraction


class UserError(Exception):
    """Something the user gave cannot work. Its text is the one line that the user reads."""


# Far beyond any machine; below, sizes in bytes still fit in 64 bits.
LARGEST = {
    "vocab_size": 2**20,
    "d_model": 2**20,
    "n_layers": 2**12,
    "n_heads": 2**14,
    "n_experts": 2**12,
    "context_length": 2**20,
}
LARGEST_RATIO = 64
ARCHITECTURES = ("neox", "llama")


@dataclass(frozen=True)
class ModelConfig:
    """Geometry of one decoder-only transformer.

    `n_experts = 0` is a dense model. `top_k` counts the experts that one token uses.
    `norm_eps` is a field because width growth by a factor that is not whole rescales it.
    `tokenizer` names what the ids mean, so that a model file can be used by itself: "builtin", "gpt2" or the
    name of a tokenizer file beside it; "" where nobody knows.

    `architecture`: "neox" has LayerNorm, GELU and biases; "llama" RMSNorm, SwiGLU and no biases.
    `queries_per_kv`: query heads that share one key and value head. `hidden_ratio`: hidden units of the MLP, and of every
    expert, in multiples of d_model. Both are ratios because growth keeps them.

    The last four are for imported models (docs/HUGGING_FACE.md). `parallel_residual`: attention and MLP of a block
    read the same residual; with `rotary_share`, the leading share of each head that RoPE turns, it is NeoX's alone.
    `tied`: the output matrix is the input embedding. `rope_scaling`: Llama 3's four numbers (models/attention.py), or
    none.

    Raises:
        UserError: the geometry is impossible; the text names every problem.
    """

    vocab_size: int
    d_model: int
    n_layers: int
    n_heads: int
    n_experts: int = 0
    top_k: int = 2
    context_length: int = 256
    rope_base: float = 10_000.0
    norm_eps: float = 1e-5
    tokenizer: str = ""
    parallel_residual: bool = False
    rotary_share: float = 1.0
    tied: bool = True
    architecture: str = "neox"
    queries_per_kv: int = 1
    hidden_ratio: float = 4.0
    rope_scaling: tuple[float, ...] = ()

    def __post_init__(self):
        problems = []
        # A file may hold it as a list, which has no hash.
        object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))
        for name, limit in LARGEST.items():
            smallest = 0 if name == "n_experts" else 1
            if not smallest <= getattr(self, name) <= limit:
                problems.append(f"{name} is {getattr(self, name)}, must be between {smallest} and {limit}")
        if not problems and self.d_model % self.n_heads:
            problems.append(
                f"d_model {self.d_model} is not divisible by n_heads {self.n_heads}; "
                f"choose n_heads among the divisors of d_model"
            )
        elif not problems and self.head_dim % 2:
            problems.append(
                f"head_dim d_model / n_heads = {self.d_model} / {self.n_heads} = {self.head_dim} is odd, "
                f"but rotary embeddings turn features in pairs; choose an even head_dim"
            )
        elif not problems and not (0 < self.rotary_share <= 1 and self.rotary_dim >= 2 and self.rotary_dim % 2 == 0):
            problems.append(
                f"rotary_share {self.rotary_share} of head_dim {self.head_dim} has to be an even number of features, "
                f"at least 2"
            )
        elif not problems and (self.queries_per_kv < 1 or self.n_heads % self.queries_per_kv):
            problems.append(
                f"n_heads {self.n_heads} is no multiple of queries_per_kv {self.queries_per_kv}, "
                f"the query heads that share a key-value head"
            )
        elif not problems and not (0 < self.hidden_ratio <= LARGEST_RATIO and self.d_hidden >= 1):
            problems.append(
                f"hidden_ratio is {self.hidden_ratio}, must give d_hidden of at least 1, at most {LARGEST_RATIO} d_model"
            )
        if self.rope_scaling and not (
            len(self.rope_scaling) == 4 and min(self.rope_scaling) > 0 and self.rope_scaling[1] < self.rope_scaling[2]
        ):
            problems.append(
                f"rope_scaling is {self.rope_scaling}, must be four numbers above 0, the second below the third"
            )
        if self.n_experts > 0 and not 1 <= self.top_k <= self.n_experts:
            problems.append(f"top_k is {self.top_k}, must be between 1 and n_experts {self.n_experts}")
        if self.architecture not in ARCHITECTURES:
            problems.append(f"architecture is {self.architecture!r}, must be one of {', '.join(ARCHITECTURES)}")
        if self.is_llama and (self.parallel_residual or self.rotary_share != 1):
            problems.append("parallel_residual and rotary_share are NeoX's, but architecture is 'llama'")
        if problems:
            raise UserError("; ".join(problems))

    @property
    def is_llama(self) -> bool:
        return self.architecture == "llama"

    @property
    def n_kv_heads(self) -> int:
        return self.n_heads // self.queries_per_kv

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def rotary_dim(self) -> int:
        """Features of each head that RoPE turns, the leading ones."""
        return int(self.head_dim * self.rotary_share)

    @property
    def d_hidden(self) -> int:
        """Hidden units of the MLP, and of every expert."""
        return round(self.hidden_ratio * self.d_model)

    @property
    def is_moe(self) -> bool:
        return self.n_experts > 0

    def upcycled(self, n_experts: int, top_k: int) -> ModelConfig:
        """The geometry after dense→MoE: every MLP becomes `n_experts` experts of its size."""
        return dataclasses.replace(self, n_experts=n_experts, top_k=top_k)

    def grown(self, scale_factor: float, extra_layers: int) -> ModelConfig:
        """The geometry after bilateral growth: head_dim and queries_per_kv stay, so key-value heads, and with them
        heads, scale with the width.

        Raises:
            UserError: `scale_factor` gives no whole number of (key-value) heads, or something shrinks.
        """
        if not math.isfinite(scale_factor) or scale_factor < 1:
            raise UserError(f"scale_factor is {scale_factor}, must be 1 or more: growth never shrinks a model")
        if extra_layers < 0:
            raise UserError(f"extra_layers is {extra_layers}, must be 0 or more: growth never removes layers")
        old_width, n_old = self.d_model, self.n_kv_heads
        n_new = Fraction(scale_factor).limit_denominator(1000) * n_old
        if n_new.denominator != 1:
            whole = [f"{n / n_old:g}" for n in range(n_old + 1, 2 * n_old + 1)]
            kind = "heads" if self.queries_per_kv == 1 else "key-value heads"
            raise UserError(
                f"scale_factor {scale_factor:g} turns {n_old} {kind} into {float(n_new):g}, "
                f"which is not a whole number; factors that work up to 2: {', '.join(whole)}"
            )
        n_heads = int(n_new) * self.queries_per_kv
        width = n_heads * self.head_dim
        # The tiles of a residual stream whose width is no multiple of the old one hold only part of the
        # variance, or mean of squares (see transfer/growth_maps.py); the norms' epsilon follows it.
        tiled_share = (width // old_width) * old_width / width
        return dataclasses.replace(
            self,
            d_model=width,
            n_heads=n_heads,
            n_layers=self.n_layers + extra_layers,
            norm_eps=self.norm_eps * tiled_share,
        )


# Times the factors of an optimizer it is still a number in fp32.
LARGEST_NUMBER = 1e36
LONGEST_SAMPLE = 10_000
# With `grow_when = "auto"` phases 1 and 2 last up to so many times their steps.
LONGEST_PHASE = 4

RUN = "Run"
SIZE = "Size and time (out of memory: lower batch_size first)"
MODEL = "Model"
GROWTH = "Growth"
DATA = "Data"
OPTIMIZER = "Optimizer (loss spike: halve the learning rate of that phase)"
REPORTING = "Reporting"


def setting(default, group: str, text: str, choices: tuple | None = None, usual: str = ""):
    """A field of `TrainingConfig` with the help text of its flag, and the values that make sense."""
    text = f"{text}; usual: {usual}" if usual else text
    return field(default=default, metadata={"group": group, "help": text, "choices": choices})


@dataclass(frozen=True)
class TrainingConfig:
    """A whole run. The defaults are the `reference` preset, the quick-reference card.

    Raises:
        UserError: from `validate`, naming every problem at once.
    """

    # Run
    preset: str = setting(
        "reference",
        RUN,
        "which preset the other defaults come from; without it: reference on CUDA and MPS, tiny on a CPU",
    )
    checkpoint_dir: str = setting("checkpoints", RUN, "folder for the three models, the history and the plot")
    overwrite: bool = setting(
        False,
        RUN,
        "delete the run that checkpoint_dir holds already, when this one starts; without it, or resume, such a folder "
        "is refused",
    )
    resume: bool = setting(
        False,
        RUN,
        "go on with the run in checkpoint_dir from its last saved state, with its settings; those given beside it "
        "change them where they still can",
    )
    start_phase: int = setting(
        1,
        RUN,
        "2 or 3 begins there with the model of the phase before, dense_model.pt or moe_model_final.pt in "
        "checkpoint_dir, which decides geometry and tokenizer, and a fresh optimizer",
        choices=(1, 2, 3),
    )
    save_every: float = setting(
        5.0,
        RUN,
        "minutes between two saved states; more where saving would take over 5 % of the run's time. The end of a "
        "phase is saved in any case",
        usual="1 to 30",
    )
    device: str = setting(
        "auto", RUN, "where to train; auto takes cuda, then mps, then cpu", choices=("auto", "cuda", "mps", "cpu")
    )
    precision: str = setting(
        "auto",
        RUN,
        "arithmetic of the matrix products; auto times bf16 against fp32 and takes the faster if it agrees. "
        "Weights, norms, router and loss stay fp32",
        choices=("auto", "fp32", "bf16"),
    )
    seed: int = setting(0, RUN, "weights, batch order and growth noise all follow from it")

    # Size and time
    batch_size: int = setting(
        8,
        SIZE,
        "sequences per step",
        usual="4 to 64 on one device; halve it when out of memory",
    )
    context_length: int = setting(
        256,
        SIZE,
        "tokens per sequence",
        usual="128 to 1024",
    )
    steps_phase1: int = setting(
        100,
        SIZE,
        "steps of phase 1, the dense model",
        usual="100 for a look, thousands for good stories",
    )
    steps_phase2: int = setting(100, SIZE, "steps of phase 2, the mixture of experts")
    steps_phase3: int = setting(100, SIZE, "steps of phase 3, the grown mixture of experts")
    accumulate: int = setting(
        1,
        SIZE,
        "parts into which each batch is split; they take turns in memory, and their gradients add up",
        usual="1; 2 to 16 when the batch does not fit",
    )
    memory: str = setting(
        "auto",
        SIZE,
        "full: the fastest. lean: matrices move in the backward pass, each gradient is freed at once, "
        "momentum in bf16, experts' hidden units computed twice. auto: lean where full will not fit",
        choices=("auto", "full", "lean"),
    )
    ignore_memory_plan: bool = setting(False, SIZE, "train although the memory plan says that it will not fit")

    # Model
    architecture: str = setting(
        "neox",
        MODEL,
        "neox: LayerNorm, GELU and biases, as GPT-NeoX. llama: RMSNorm, SwiGLU and no biases; its mixture of experts "
        "leaves as a stock Mixtral",
        choices=ARCHITECTURES,
    )
    d_model: int = setting(
        832,
        MODEL,
        "width of the dense model; a multiple of n_heads",
        usual="128 to 1024; lower it when steps are slow",
    )
    n_layers: int = setting(
        7,
        MODEL,
        "blocks of the dense model",
        usual="4 to 12",
    )
    n_heads: int = setting(
        8,
        MODEL,
        "attention heads of the dense model; d_model / n_heads has to be even",
        usual="d_model / 64 to d_model / 32",
    )
    n_experts: int = setting(
        8,
        MODEL,
        "experts per layer from phase 2 on",
        usual="4 to 16",
    )
    top_k: int = setting(
        2,
        MODEL,
        "experts that each token uses",
        usual="1 or 2",
    )

    # Growth
    scale_factor: float = setting(
        2.0,
        GROWTH,
        "width factor of phase 3: 2 doubles d_model and heads, 1.5 is the way out of an out-of-memory, "
        "1 leaves the width",
        usual="1.5 to 3",
    )
    extra_layers: int = setting(
        4,
        GROWTH,
        "identity blocks that phase 3 inserts, spread evenly; 0 leaves the depth",
        usual="0 to the number of layers that there are",
    )
    noise_std: float = setting(
        1.0,
        GROWTH,
        "symmetry-breaking noise, as a share of each grown weight's own standard deviation. It cancels, so its size "
        "costs no exactness; 0 would keep clones equal for ever",
        usual="0.5 to 2",
    )
    router_std: float = setting(
        0.02,
        GROWTH,
        "standard deviation of the routers that upcycling makes; 0 would send every token to the same experts",
        usual="0.01 to 0.1",
    )
    grow_when: str = setting(
        "fixed",
        GROWTH,
        "fixed: after steps_phase1 and steps_phase2. auto: when a trial on a copy gains more grown than as it is, "
        "between half and four times those steps",
        choices=("fixed", "auto"),
    )
    grow_optimizer: str = setting(
        "grown",
        GROWTH,
        "what the optimizer's moments become: grown with the weights, asymmetric (later clones start from zero), fresh",
        choices=("grown", "asymmetric", "fresh"),
    )
    check_tolerance: float = setting(
        1e-4,
        GROWTH,
        "largest relative drift that the growth checks accept",
        usual="1e-5 to 1e-3",
    )
    ignore_failed_checks: bool = setting(
        False, GROWTH, "go on after a failed growth check (otherwise the run stops with exit code 3)"
    )

    # Data
    data: str = setting(
        "auto",
        DATA,
        "auto: TinyStories from the hub, else the built-in stories; tinystories; builtin; or a PATH to .txt with "
        "<|endoftext|> between stories, or .jsonl / .parquet with a text column",
    )
    valid_data: str = setting("", DATA, "held-out stories for --data PATH; without it one story in twenty is held out")
    tokenizer: str = setting(
        "auto",
        DATA,
        "gpt2 (50,257 ids), builtin, our own (4,097), or the PATH of a tokenizer.json; auto: that of the model with which "
        "--start-phase begins, else builtin for the built-in stories and gpt2, where it can be had, for others",
    )
    cache_dir: str = setting("data/cache", DATA, "folder for tokenised stories")

    # Optimizer
    lr_phase1: float = setting(
        0.05,
        OPTIMIZER,
        "peak learning rate of phase 1: Muon's, for matrices, and the same for every width. AdamW moves the rest "
        "with a quarter of it and less",
        usual="0.01 to 0.1; halve it after a loss spike",
    )
    lr_phase2: float = setting(
        0.03,
        OPTIMIZER,
        "peak learning rate of phase 2",
        usual="half of phase 1 or a little more",
    )
    lr_phase3: float = setting(
        0.02,
        OPTIMIZER,
        "peak learning rate of phase 3",
        usual="half of phase 2 or a little more",
    )
    warmup_steps: int = setting(
        5,
        OPTIMIZER,
        "steps over which each phase rises to its peak, from zero or from where the phase before ended",
        usual="5 to 100",
    )
    final_lr_share: float = setting(
        0.1,
        OPTIMIZER,
        "where the last 60 % of each phase fall to, in a straight line, as a share of its peak; "
        "with grow_when auto phases 1 and 2 hold their peak",
        usual="0 to 0.3",
    )
    weight_decay: float = setting(
        0.1,
        OPTIMIZER,
        "decay of matrices; embedding, biases, norms and routers have none",
        usual="0 to 0.1",
    )
    grad_clip: float = setting(
        1.0,
        OPTIMIZER,
        "largest norm of the whole gradient; lean memory clips by the norm of the step before",
        usual="0.5 to 2",
    )
    balance_weight: float = setting(
        0.3,
        OPTIMIZER,
        "weight of the load-balancing loss; at 0.1 single experts fell to 1 % of the tokens",
        usual="0.1 to 0.5; raise it when an expert runs empty",
    )
    z_weight: float = setting(
        1e-3,
        OPTIMIZER,
        "weight of the router's z-loss",
        usual="0 to 1e-2",
    )

    # Reporting
    log_every: int = setting(
        10,
        REPORTING,
        "steps between two printed lines; every step is in the history",
        usual="1 to 100",
    )
    eval_every: int = setting(
        50,
        REPORTING,
        "steps between two held-out losses",
        usual="10 to 500",
    )
    eval_batches: int = setting(
        4,
        REPORTING,
        "held-out batches per measurement, the same ones every time",
        usual="4 to 64; more are steadier and slower",
    )
    sample_tokens: int = setting(
        48,
        REPORTING,
        "length of the story printed after each phase, in tokens; 0 prints none",
        usual="0 to 200",
    )
    tensorboard: bool = setting(
        False, REPORTING, "write event files to checkpoint_dir/tensorboard as well (pip install tensorboard)"
    )
    wandb: bool = setting(False, REPORTING, "send the history to Weights & Biases as well (pip install wandb)")

    def validate(self) -> None:
        """Raises UserError naming every field that cannot work."""
        problems = []

        def require(holds: bool, name: str, rule: str):
            if not holds:
                problems.append(f"{name} is {getattr(self, name)!r}, {rule}")

        for item in dataclasses.fields(self):
            value, kind = getattr(self, item.name), type(item.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise UserError(f"{item.name} is {value!r}, must be of type {kind.__name__}")
            if isinstance(value, float) and not math.isfinite(value):
                problems.append(f"{item.name} is {value}, must be a finite number")
            elif kind is float and value > LARGEST_NUMBER:
                problems.append(f"{item.name} is {value}, must be at most {LARGEST_NUMBER:g}")
            choices = item.metadata["choices"]
            if choices and value not in choices:
                problems.append(f"{item.name} is {value!r}, must be one of {', '.join(choices)}")
        require(
            self.tokenizer in ("auto", "gpt2", "builtin") or self.tokenizer.endswith(".json"),
            "tokenizer",
            "must be auto, gpt2, builtin or the path of a tokenizer.json",
        )
        require(self.preset in PRESETS, "preset", f"must be one of {', '.join(PRESETS)}")
        for name in (
            "batch_size",
            "context_length",
            "n_experts",
            "top_k",
            "accumulate",
            "log_every",
            "eval_every",
            "eval_batches",
        ):
            require(getattr(self, name) >= 1, name, "must be at least 1")
        for name in ("steps_phase1", "steps_phase2", "steps_phase3", "warmup_steps", "sample_tokens", "seed"):
            require(getattr(self, name) >= 0, name, "must be 0 or more")
        for name in ("noise_std", "router_std", "weight_decay", "balance_weight", "z_weight", "save_every"):
            require(getattr(self, name) >= 0, name, "must be 0 or more")
        for name in ("lr_phase1", "lr_phase2", "lr_phase3", "grad_clip", "check_tolerance"):
            require(getattr(self, name) > 0, name, "must be above 0")
        require(self.sample_tokens <= LONGEST_SAMPLE, "sample_tokens", f"must be at most {LONGEST_SAMPLE:,}")
        require(self.seed < 2**63, "seed", "must be below 2**63")
        require(self.accumulate <= self.batch_size, "accumulate", f"must be at most batch_size, {self.batch_size}")
        require(
            self.accumulate == 1 or self.memory != "lean",
            "accumulate",
            "but with memory 'lean' matrices move in the backward pass, before a second part could add its gradients; "
            "give --accumulate 1, or --memory full",
        )
        require(0 <= self.final_lr_share <= 1, "final_lr_share", "must be between 0 and 1")
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

    def phase_geometries(self, vocab_size: int, tokenizer: str = "") -> tuple[ModelConfig, ModelConfig, ModelConfig]:
        """The models of the three phases."""
        return self.geometries_from(self.dense_geometry(vocab_size, tokenizer))

    def geometries_from(self, dense: ModelConfig) -> tuple[ModelConfig, ModelConfig, ModelConfig]:
        """The models of the three phases where the first is `dense`."""
        moe = dense.upcycled(self.n_experts, self.top_k)
        return dense, moe, moe.grown(self.scale_factor, self.extra_layers)

    def steps(self, phase: int) -> int:
        return (self.steps_phase1, self.steps_phase2, self.steps_phase3)[phase - 1]

    def learning_rate(self, phase: int) -> float:
        return (self.lr_phase1, self.lr_phase2, self.lr_phase3)[phase - 1]

    @property
    def total_steps(self) -> int:
        """At most, where trials of growth decide."""
        longest = LONGEST_PHASE if self.grow_when == "auto" else 1
        return longest * (self.steps_phase1 + self.steps_phase2) + self.steps_phase3


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
        # Batches half as large as the card's: at its rates the loss rises for a while after a boundary.
        lr_phase2=0.02,
        lr_phase3=0.01,
        warmup_steps=10,
        eval_every=40,
    ),
}
