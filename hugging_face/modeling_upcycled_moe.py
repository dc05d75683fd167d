"""GPT-NeoX whose MLPs are mixtures of experts, for Hugging Face's `transformers`; written by `hugging_face.export`.

`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it from an exported folder. All but the
experts is `transformers`' own GPT-NeoX: attention, cache, generation. A router gives each token its `top_k`
best experts; their gates are a softmax over the chosen logits. There is no load-balancing loss here: it was
trained with one elsewhere. Written for `transformers` 5.

Shape letters: N tokens, k experts of a token, E experts, D width.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM


class UpcycledMoEConfig(GPTNeoXConfig):
    """`GPTNeoXConfig` with the number of experts in each layer, and how many of them a token uses."""

    model_type = "upcycled_moe"

    def __init__(self, num_experts: int = 8, num_experts_per_tok: int = 2, **kwargs):
        self.num_experts = num_experts
        self.num_experts_per_tok = num_experts_per_tok
        super().__init__(**kwargs)


class StackedLinear(nn.Module):
    """One linear layer per expert: weight (E, out, in), bias (E, out)."""

    def __init__(self, n_experts: int, d_in: int, d_out: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, d_out, d_in))
        self.bias = nn.Parameter(torch.zeros(n_experts, d_out))


class MixtureOfExperts(nn.Module):
    """Takes the place of GPT-NeoX's MLP."""

    def __init__(self, config: UpcycledMoEConfig):
        super().__init__()
        self.top_k, n_experts = config.num_experts_per_tok, config.num_experts
        self.router = nn.Linear(config.hidden_size, n_experts, bias=False)
        self.dense_h_to_4h = StackedLinear(n_experts, config.hidden_size, config.intermediate_size)
        self.dense_4h_to_h = StackedLinear(n_experts, config.intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        x_ND = hidden_states.flatten(0, -2)
        # In fp32: a rounded logit sends a token to another expert.
        logits_NE = F.linear(x_ND.float(), self.router.weight.float())
        chosen_Nk, expert_Nk = logits_NE.topk(self.top_k, dim=-1)
        gate_Nk = chosen_Nk.softmax(-1).to(x_ND.dtype)
        up, down = self.dense_h_to_4h, self.dense_4h_to_h
        y_ND = torch.zeros_like(x_ND)
        for expert in range(len(up.weight)):
            token, slot = (expert_Nk == expert).nonzero(as_tuple=True)
            if len(token):
                hidden = F.gelu(F.linear(x_ND[token], up.weight[expert], up.bias[expert]))
                output = F.linear(hidden, down.weight[expert], down.bias[expert])
                y_ND.index_add_(0, token, output * gate_Nk[token, slot, None])
        return y_ND.view_as(hidden_states)


class UpcycledMoEForCausalLM(GPTNeoXForCausalLM):
    """`GPTNeoXForCausalLM` with a `MixtureOfExperts` in each layer."""

    config_class = UpcycledMoEConfig

    def __init__(self, config: UpcycledMoEConfig):
        super().__init__(config)
        if not hasattr(self, "lm_head"):  # older versions call the output matrix embed_out, and would not find it
            raise ImportError("this mixture of experts needs transformers 5 or newer")
        for layer in self.gpt_neox.layers:
            layer.mlp = MixtureOfExperts(config)
        self.post_init()
