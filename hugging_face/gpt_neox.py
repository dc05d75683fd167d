"""Our models and Hugging Face's GPT-NeoX: the one mapping of names and settings, in both directions.

The architectures are the same, down to the layout of the fused projection, (head, q|k|v, feature), so every
tensor goes over as it is. `transformers` is not needed for it. What maps to what is listed in
docs/HUGGING_FACE.md.
"""

from __future__ import annotations

from torch import Tensor

from config import ModelConfig
from hugging_face.fields import Fields
from models import Transformer

# Parts of parameter names, ours and theirs; "unembedding." first, as "embedding." is a part of it.
NAMES = {
    "unembedding.": "embed_out.", "embedding.": "gpt_neox.embed_in.", "blocks.": "gpt_neox.layers.",
    "final_norm.": "gpt_neox.final_layer_norm.", "attention_norm.": "input_layernorm.",
    "mlp_norm.": "post_attention_layernorm.", "attention.qkv.": "attention.query_key_value.",
    "attention.out.": "attention.dense.", "mlp.up.": "mlp.dense_h_to_4h.", "mlp.down.": "mlp.dense_4h_to_h.",
}  # fmt: skip
# Their settings and the values that a config.json leaves out, as `transformers` fills them in.
DEFAULTS = {
    "vocab_size": 50_432, "hidden_size": 6_144, "num_hidden_layers": 44, "num_attention_heads": 64,
    "intermediate_size": 24_576, "max_position_embeddings": 2_048, "layer_norm_eps": 1e-5, "rotary_pct": 0.25,
    "rotary_emb_base": 10_000, "use_parallel_residual": True, "tie_word_embeddings": False, "hidden_act": "gelu",
    "attention_bias": True, "rope_scaling": None, "quantization_config": None,
}  # fmt: skip
# Those of them that also stand in `rope_parameters`, and what they are called there.
ROPE = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}
USED = DEFAULTS | {"rope_parameters": None, "partial_rotary_factor": None, "rope_theta": None, "eos_token_id": None}


def neox_name(name: str) -> str:
    """Their name of a parameter of ours."""
    for ours, theirs in NAMES.items():
        name = name.replace(ours, theirs)
    return name


def released_name(name: str) -> str:
    """Their name of a parameter in released models; transformers 5 calls the output matrix otherwise in memory."""
    return name.replace("lm_head.", "embed_out.")


def neox_weights(model: Transformer) -> dict[str, Tensor]:
    """A model's tensors under their names; those of experts, which NeoX has not, are stacked, (n_experts, …).

    A tied output matrix is not among them.
    """
    return {neox_name(name): tensor for name, tensor in model.state_dict().items()}


def neox_config(config: ModelConfig) -> dict:
    """The settings in a config.json of GPT-NeoX that compute what `config` does."""
    return {
        "model_type": "gpt_neox",
        "architectures": ["GPTNeoXForCausalLM"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "intermediate_size": config.d_hidden,
        "hidden_act": "gelu",
        "attention_bias": True,
        "max_position_embeddings": config.context_length,
        "layer_norm_eps": config.norm_eps,
        # The older names, which every version of transformers reads.
        "rotary_pct": config.rotary_share,
        "rotary_emb_base": config.rope_base,
        "use_parallel_residual": config.parallel_residual,
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
        "hidden_dropout": 0.0,
    }


def from_neox_config(theirs: dict, context_length: int | None = None, tokenizer: str = "") -> ModelConfig:
    """The geometry of a model that computes what a config.json of GPT-NeoX says. Dropout is left out.

    Args:
        context_length: fewer positions than the model was made for; None takes them all.
    Raises:
        UserError: naming every field with which our models cannot do.
    """
    fields = Fields(theirs, USED)
    rope = fields.rope(ROPE, ignored=("partial_rotary_factor", "rope_theta"))
    fields.values |= {name: rope[inside] for name, inside in ROPE.items() if inside in rope}
    fields.require_kinds(
        "vocab_size hidden_size num_hidden_layers num_attention_heads max_position_embeddings intermediate_size",
        "layer_norm_eps rotary_pct rotary_emb_base",
        "use_parallel_residual tie_word_embeddings",
    )
    fields.require(
        fields["hidden_act"] == "gelu", "hidden_act", "must be 'gelu', the exact one: our MLPs have no other"
    )
    fields.require(fields["attention_bias"] is True, "attention_bias", "must be true: our projections have biases")
    fields.require_plain("GPTNeoXForCausalLM")
    kind = rope.get("rope_type", "default")
    if kind != "default":
        fields.problems.append(f"the rope_type of RoPE is {kind!r}, must be 'default': our angles are not scaled")
    if not fields.problems:
        wanted = 4 * fields["hidden_size"]
        fields.require(fields["intermediate_size"] == wanted, "intermediate_size", f"must be 4 hidden_size, {wanted}")
        fields.require_context(context_length)
    fields.require_sound()
    return ModelConfig(
        fields["vocab_size"],
        fields["hidden_size"],
        fields["num_hidden_layers"],
        fields["num_attention_heads"],
        context_length=context_length or fields["max_position_embeddings"],
        rope_base=float(fields["rotary_emb_base"]),
        norm_eps=float(fields["layer_norm_eps"]),
        tokenizer=tokenizer,
        parallel_residual=fields["use_parallel_residual"],
        rotary_share=float(fields["rotary_pct"]),
        tied=fields["tie_word_embeddings"],
    )
