"""Every field of a config.json is used, known to be harmless, or refused by its name.

A field that changes what a model computes must never pass without a word; nor must two that contradict each other.
"""

from __future__ import annotations

from config import UserError

# What says where a file comes from, how a model was begun, or how its texts are drawn; so does what begins with an
# underscore. Dropout is left out.
HARMLESS = frozenset(
    "architectures attention_dropout bos_token_id chunk_size_feed_forward classifier_dropout "
    "do_sample dtype hidden_dropout id2label initializer_range is_decoder label2id max_length "
    "max_new_tokens min_length model_type num_beams output_attentions output_hidden_states output_router_logits "
    "pad_token_id pretraining_tp problem_type repetition_penalty return_dict router_aux_loss_coef router_jitter_noise "
    "temperature tokenizer_class top_k top_p torch_dtype transformers_version unk_token_id use_cache".split()
)
# What says no more than that, as long as it says this.
HARMLESS_VALUES = {
    "add_cross_attention": False, "is_encoder_decoder": False, "is_llama_config": True, "rope_interleaved": False,
    "use_sliding_window": False,
}  # fmt: skip


class Fields:
    """The fields of one config.json beside the defaults of its family; problems gather until `require_sound`.

    Args:
        defaults: the fields that are used, with the values that `transformers` takes where they are left out.
    """

    def __init__(self, theirs: dict, defaults: dict):
        self.given, self.values, self.problems = theirs, {**defaults, **theirs}, []
        unknown = {name for name in theirs if not name.startswith("_")} - defaults.keys() - HARMLESS
        for name in sorted(unknown):
            if theirs[name] is not None and theirs[name] is not HARMLESS_VALUES.get(name):
                self.problems.append(
                    f"{name} is {theirs[name]!r}, a field that we do not know and that may change what the model computes"
                )

    def __getitem__(self, name: str):
        return self.values[name]

    def require(self, holds: bool, name: str, rule: str) -> None:
        if not holds:
            self.problems.append(f"{name} is {self.values[name]!r}, {rule}")

    def require_kinds(self, whole: str = "", above_zero: str = "", true_or_false: str = "") -> None:
        """Names, separated by spaces, of fields of each kind."""
        for name in whole.split():
            self.require(type(self[name]) is int and self[name] > 0, name, "must be a whole number above 0")
        for name in above_zero.split():
            self.require(type(self[name]) in (int, float) and self[name] > 0, name, "must be a number above 0")
        for name in true_or_false.split():
            self.require(type(self[name]) is bool, name, "must be true or false")

    def require_plain(self, architecture: str) -> None:
        """A language model of floating-point weights."""
        named = self.given.get("architectures")
        self.values["architectures"] = named
        self.require(named in (None, [architecture]), "architectures", f"must be {[architecture]}")
        self.require(self["quantization_config"] is None, "quantization_config", "but only plain weights can be read")

    def require_context(self, context_length: int | None) -> None:
        limit = self["max_position_embeddings"]
        if context_length and not 1 <= context_length <= limit:
            self.problems.append(
                f"--context-length is {context_length}, must be between 1 and max_position_embeddings, {limit}"
            )

    def require_sound(self) -> None:
        """Raises UserError naming every problem."""
        if self.problems:
            raise UserError("; ".join(self.problems))

    def rope(self, beside: dict[str, str], known: tuple[str, ...] = (), ignored: tuple[str, ...] = ()) -> dict:
        """What concerns RoPE, which stands in `rope_parameters` (transformers 5) or `rope_scaling` (4), or beside them.

        Args:
            beside: fields of the file itself that say the same, with what they are called inside those two.
            known: what else may be inside.
            ignored: fields beside them that transformers reads for nothing: they may say nothing else.
        """
        places = ("rope_scaling", "rope_parameters")
        for place in places:
            if not isinstance(self[place], (dict, type(None))):
                self.problems.append(f"{place} is {self[place]!r}, must be an object or null")
                return {}
        objects = {place: dict(self[place]) for place in places if self[place]}
        for place, inside in objects.items():
            older_type = inside.pop("type", None)
            if older_type is not None and inside.setdefault("rope_type", older_type) != older_type:
                self.problems.append(f"{place} has two types, {inside['rope_type']!r} and {older_type!r}: leave one")
            for name in sorted(inside.keys() - {"rope_type", *beside.values(), *known}):
                if inside[name] is not None:
                    self.problems.append(
                        f"{name} of {place} is {inside[name]!r}, which we do not know beside its rope_type"
                    )
        if len(objects) == 2 and objects["rope_scaling"] != objects["rope_parameters"]:
            self.problems.append(
                f"rope_scaling is {self['rope_scaling']!r} beside other rope_parameters: leave one of them"
            )
        found = {name: value for inside in objects.values() for name, value in inside.items() if value is not None}
        for name, inside in beside.items():
            if self.given.get(name) is not None:
                self._agree(found, inside, name)
        for name, inside in beside.items():
            found.setdefault(inside, self[name])
        for name in ignored:
            if self.given.get(name) is not None:
                self._agree(found, name, name)
        return {"rope_type": "default", **found}

    def _agree(self, found: dict, inside: str, name: str) -> None:
        value = self.given[name]
        if found.setdefault(inside, value) != value:
            self.problems.append(f"{name} is {value!r}, but it is {found[inside]!r} elsewhere: leave one of them")
