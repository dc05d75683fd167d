"""Our models of Llama's form and Hugging Face's Llama, Mistral and Mixtral: names and settings, in both directions.

    dense                LlamaForCausalLM; MistralForCausalLM is the same where no sliding window hides anything
    mixture of experts   MixtralForCausalLM: the softmax over all experts, divided by the sum over the chosen ones, is
                         the softmax over the chosen logits, our gates

Every tensor of theirs is a part of one of ours, so one list of views serves to read and to write. `transformers` is not
needed for it. What maps to what is listed in docs/HUGGING_FACE.md.
"""

from __future__ import annotations

from torch import Tensor

from config import ModelConfig
from hugging_face.fields import Fields
from models import Transformer

ARCHITECTURES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "mixtral": "MixtralForCausalLM"}
# Their settings and the values that a config.json leaves out, as `transformers` fills them in.
DEFAULTS = {
    "vocab_size": 32_000, "hidden_size": 4_096, "intermediate_size": 11_008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None, "head_dim": None, "hidden_act": "silu",
    "max_position_embeddings": 2_048, "rms_norm_eps": 1e-6, "tie_word_embeddings": False, "attention_bias": False,
    "mlp_bias": False, "rope_theta": 10_000.0, "sliding_window": None,
}  # fmt: skip
OTHER_DEFAULTS = {
    "llama": {},
    "mistral": {
        "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072,
        "sliding_window": 4_096,
    },
    "mixtral": {
        "intermediate_size": 14_336, "num_key_value_heads": 8, "max_position_embeddings": 131_072, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "num_local_experts": 8, "num_experts_per_tok": 2,
    },
}  # fmt: skip
NO_DEFAULTS = ("rope_scaling", "rope_parameters", "quantization_config", "eos_token_id", "layer_types")
SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def llama_weights(model: Transformer) -> dict[str, Tensor]:
    """Views of a model's parameters under their names; what is written to a view is written to the model.

    A view has the elements of their tensor in its order, but for the queries, (key-value head, query, feature, in)
    where theirs are (query head · feature, in). A tied output matrix is not among them.
    """
    config, found = model.config, {"model.embed_tokens.weight": model.embedding.weight.detach()}
    for number, block in enumerate(model.blocks):
        Q, K = config.queries_per_kv, config.head_dim
        qkv_GPKI = block.attention.qkv.weight.detach().unflatten(0, (config.n_kv_heads, Q + 2, K))
        views = {
            "input_layernorm": block.attention_norm.weight.detach(),
            "self_attn.q_proj": qkv_GPKI[:, :Q],
            "self_attn.k_proj": qkv_GPKI[:, Q],
            "self_attn.v_proj": qkv_GPKI[:, Q + 1],
            "self_attn.o_proj": block.attention.out.weight.detach(),
            "post_attention_layernorm": block.mlp_norm.weight.detach(),
        }
        up, down = block.mlp.up.weight.detach(), block.mlp.down.weight.detach()
        if config.is_moe:
            views["block_sparse_moe.gate"] = block.mlp.router.weight.detach()
            for expert in range(config.n_experts):
                parts = {"w1": up[expert, 0], "w3": up[expert, 1], "w2": down[expert]}
                views |= {f"block_sparse_moe.experts.{expert}.{name}": part for name, part in parts.items()}
        else:
            views |= {"mlp.gate_proj": up[0], "mlp.up_proj": up[1], "mlp.down_proj": down}
        found |= {f"model.layers.{number}.{name}.weight": view for name, view in views.items()}
    found["model.norm.weight"] = model.final_norm.weight.detach()
    if not config.tied:
        found["lm_head.weight"] = model.unembedding.weight.detach()
    return found


def llama_config(config: ModelConfig, balance_weight: float = 0.0) -> dict:
    """The settings in a config.json of Llama, or of Mixtral, that compute what `config` does.

    Args:
        balance_weight: of the load-balancing loss in training. Mixtral's loss adds up over the `top_k` experts of a
            token where ours takes the mean, so its coefficient is so many times smaller.
    """
    kind = "mixtral" if config.is_moe else "llama"
    theirs = {
        "model_type": kind,
        "architectures": [ARCHITECTURES[kind]],
        "vocab_size": config.vocab_size,
        "hidden_size": config.d_model,
        "intermediate_size": config.d_hidden,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        # The older names, which every version of transformers reads.
        "rope_theta": config.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied,
        "attention_dropout": 0.0,
    }
    if config.rope_scaling:
        *factors, context = config.rope_scaling
        theirs["rope_scaling"] = {"rope_type": "llama3", **dict(zip(SCALING, (*factors, int(context))))}
    if not config.is_moe:
        return theirs | {"attention_bias": False, "mlp_bias": False}
    return theirs | {
        "num_local_experts": config.n_experts,
        "num_experts_per_tok": config.top_k,
        "router_aux_loss_coef": balance_weight / config.top_k,
        "sliding_window": None,
    }


def from_llama_config(theirs: dict, context_length: int | None = None, tokenizer: str = "") -> ModelConfig:
    """The geometry of a model that computes what a config.json of Llama, Mistral or Mixtral says.

    Args:
        context_length: fewer positions than the model was made for; None takes them all.
    Raises:
        UserError: naming every field with which our models cannot do.
    """
    kind = theirs["model_type"]
    fields = Fields(theirs, DEFAULTS | dict.fromkeys(NO_DEFAULTS) | OTHER_DEFAULTS[kind])
    rope = fields.rope({"rope_theta": "rope_theta"}, known=(*SCALING, "partial_rotary_factor"))
    fields.values["rope_theta"] = rope.get("rope_theta")
    if fields["num_key_value_heads"] is None:
        fields.values["num_key_value_heads"] = fields["num_attention_heads"]
    require_form(fields, rope, kind)
    scaling = scaling_of(rope, fields)
    fields.require_sound()
    fields.require_context(context_length)
    context_length = context_length or fields["max_position_embeddings"]
    require_fit(fields, context_length)
    fields.require_sound()
    heads, width, is_moe = fields["num_attention_heads"], fields["hidden_size"], kind == "mixtral"
    return ModelConfig(
        fields["vocab_size"],
        width,
        fields["num_hidden_layers"],
        heads,
        n_experts=fields["num_local_experts"] if is_moe else 0,
        top_k=fields["num_experts_per_tok"] if is_moe else ModelConfig.top_k,
        context_length=context_length,
        rope_base=float(fields["rope_theta"]),
        norm_eps=float(fields["rms_norm_eps"]),
        tokenizer=tokenizer,
        tied=fields["tie_word_embeddings"],
        architecture="llama",
        queries_per_kv=heads // fields["num_key_value_heads"],
        hidden_ratio=fields["intermediate_size"] / width,
        rope_scaling=scaling,
    )


def require_form(fields: Fields, rope: dict, kind: str) -> None:
    """What each field must say by itself, for a model of ours to compute the same."""
    fields.require_kinds(
        "vocab_size hidden_size num_hidden_layers num_attention_heads num_key_value_heads max_position_embeddings "
        "intermediate_size" + " num_local_experts num_experts_per_tok" * (kind == "mixtral"),
        "rms_norm_eps rope_theta",
        "tie_word_embeddings",
    )
    fields.require(fields["hidden_act"] in ("silu", "swish"), "hidden_act", "must be 'silu': our gates have no other")
    for name in ("attention_bias", "mlp_bias"):
        fields.require(fields[name] is False, name, "must be false: models of this form have no biases here")
    fields.require_plain(ARCHITECTURES[kind])
    layers = fields["layer_types"]
    is_full = layers is None or isinstance(layers, list) and all(layer == "full_attention" for layer in layers)
    fields.require(is_full, "layer_types", "must be 'full_attention' in all layers")
    if rope.get("partial_rotary_factor") not in (None, 1, 1.0):
        fields.problems.append(f"partial_rotary_factor is {rope['partial_rotary_factor']!r}, must be 1")
    for name in ("head_dim", "sliding_window"):
        fields.require(type(fields[name]) in (int, type(None)), name, "must be a whole number or null")


def require_fit(fields: Fields, context_length: int) -> None:
    """How fields of the right form must go together."""
    heads, width, window = (fields[name] for name in ("num_attention_heads", "hidden_size", "sliding_window"))
    is_grouped = heads % fields["num_key_value_heads"] == 0
    fields.require(is_grouped, "num_key_value_heads", f"must divide num_attention_heads, {heads}")
    fields.require(
        fields["head_dim"] is None or fields["head_dim"] * heads == width,
        "head_dim",
        f"must be hidden_size / num_attention_heads, {width / heads:g}",
    )
    fields.require(
        window is None or window >= context_length,
        "sliding_window",
        f"but attention here sees all {context_length:,} positions: give --context-length {window} or less",
    )


def scaling_of(rope: dict, fields: Fields) -> tuple[float, ...]:
    """`ModelConfig.rope_scaling` of what concerns RoPE; what is wrong with it becomes a problem of the fields."""
    kind, values = rope.get("rope_type"), [rope.get(name) for name in SCALING]
    if kind == "llama3":
        missing = [name for name, value in zip(SCALING, values) if type(value) not in (int, float) or value <= 0]
        if missing:
            fields.problems.append(f"RoPE of rope_type 'llama3' needs {', '.join(missing)}, numbers above 0")
        return () if missing else tuple(map(float, values))
    if kind not in ("default", None):
        fields.problems.append(f"the rope_type of RoPE is {kind!r}, must be 'default' or 'llama3'")
    elif any(value is not None for value in values):
        fields.problems.append(f"RoPE of rope_type 'default' has no {SCALING[0]}: leave out what scales it")
    return ()
