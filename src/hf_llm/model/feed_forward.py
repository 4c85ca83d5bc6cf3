"""What a token computes from what it has gathered: an MLP, or a few chosen of many. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   D hidden_size   I intermediate_size   E experts   k experts of a token   N = B * T
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import ACT2FN
from transformers.integrations.moe import use_experts_implementation

from .configuration_hf_llm import HfLlmConfig

BIAS_GRADIENT = 1e-3  # so small that the clipped gradient norm does not notice; Adam's step is as large all the same


class HfLlmMLP(nn.Module):
    """Two matrices with a nonlinearity between them; gated by a third (SwiGLU, GeGLU: https://arxiv.org/abs/2002.05202).

    ReLU^2 (`hidden_act: relu2`) is that of https://arxiv.org/abs/2109.08668.
    """

    def __init__(self, config: HfLlmConfig, intermediate_size: int | None = None):
        super().__init__()
        size = intermediate_size or config.intermediate_size
        if config.use_gated_mlp:
            self.gate_proj = nn.Linear(config.hidden_size, size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=config.mlp_bias)
        # torch's stub lets a module have tensors and modules only; any attribute is fine.
        self.down_proj.initializer_scale = config.residual_scale  # pyright: ignore[reportArgumentType]
        self.act_fn = ACT2FN[config.hidden_act]
        self.is_gated = config.use_gated_mlp

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        up = self.up_proj(x)  # B T I
        hidden = self.act_fn(self.gate_proj(x)) * up if self.is_gated else self.act_fn(up)  # B T I
        return self.down_proj(hidden)  # B T D


class HfLlmRouter(nn.Module):
    """Which experts a token goes to, and with what weights.

    Balanced by a loss, the scores are a softmax (https://arxiv.org/abs/2101.03961); balanced by a bias, sigmoids, and
    the bias counts in the choice alone (https://arxiv.org/abs/2408.15664).
    """

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        assert config.num_experts is not None  # only layers of experts have a router
        self.top_k = config.num_experts_per_tok
        self.norm_topk_prob = config.norm_topk_prob
        self.weight = nn.Parameter(torch.zeros(config.num_experts, config.hidden_size))
        self.is_biased = config.expert_balancing == "bias"
        if self.is_biased:
            self.e_score_correction_bias = nn.Parameter(torch.zeros(config.num_experts))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return, of tokens (N D), the values by which experts are chosen (N E), and the weights and indices of the
        chosen ones (N k)."""
        with torch.autocast(x.device.type, enabled=False):
            logits = F.linear(x.float(), self.weight.float())  # N E

        if self.is_biased:
            scores = logits.sigmoid().float()
            choice = scores.detach() + self.e_score_correction_bias
        else:
            scores = logits.softmax(dim=-1, dtype=torch.float32)
            choice = logits
        chosen = choice.topk(self.top_k, dim=-1).indices  # N k

        weights = scores.gather(1, chosen)  # N k
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return choice, weights.to(x.dtype), chosen


@use_experts_implementation
class HfLlmExperts(nn.Module):
    """Many gated MLPs in two tensors. `forward` is the one for `experts_implementation="eager"`; transformers has
    faster ones."""

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        width = config.moe_intermediate_size
        assert config.num_experts is not None and width is not None  # the config has filled the width in
        self.num_experts = config.num_experts
        self.gate_up_proj = nn.Parameter(torch.empty(config.num_experts, 2 * width, config.hidden_size))  # E 2I D
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.hidden_size, width))  # E D I
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)  # N D
        for expert in chosen.unique():
            token, rank = (chosen == expert).nonzero(as_tuple=True)  # the expert is the rank-th choice of the token
            gate, up = F.linear(x[token], self.gate_up_proj[expert]).chunk(2, dim=-1)
            expert_out = F.linear(self.act_fn(gate) * up, self.down_proj[expert]) * weights[token, rank, None]
            out.index_add_(0, token, expert_out.to(out.dtype))
        return out


class HfLlmMixtureOfExperts(nn.Module):
    """An MLP of which each token uses the experts chosen for it, and those that all tokens share (2401.06066)."""

    def __init__(self, config: HfLlmConfig):
        super().__init__()
        self.gate = HfLlmRouter(config)
        self.experts = HfLlmExperts(config)
        self.shared_experts = None
        if config.n_shared_experts:
            assert config.moe_intermediate_size is not None  # the config has filled it in
            self.shared_experts = HfLlmMLP(config, config.n_shared_experts * config.moe_intermediate_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = x.flatten(0, -2)  # N D
        _, weights, chosen = self.gate(tokens)
        out = self.experts(tokens, chosen, weights).view_as(x)  # B T D
        return out if self.shared_experts is None else out + self.shared_experts(x)


def balancing_loss(
    choices: tuple[torch.Tensor, ...],  # N E of each layer, the values by which its router chose
    config: HfLlmConfig,
    real: torch.Tensor | None,  # N, 0 for padding
) -> torch.Tensor:
    """Return what training adds so that the experts get equal shares of the tokens (BALANCES), as the mean over the
    layers."""
    balance = BALANCES[config.expert_balancing]
    if real is None:
        real = torch.ones(choices[0].shape[0])  # N

    losses = []
    for choice in choices:
        token = real.to(choice) / real.sum().clamp(min=1).to(choice)  # N, sums to one
        chosen = choice.topk(config.num_experts_per_tok, dim=-1).indices  # N k
        is_chosen = torch.zeros_like(choice).scatter(1, chosen, 1.0)  # N E
        share = is_chosen.T @ token  # E, sums to k
        losses.append(balance(share, choice, token))
    return torch.stack(losses).mean()


def switch_loss(share: torch.Tensor, choice: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Return E times the sum over experts of their share of tokens and their mean probability
    (https://arxiv.org/abs/2101.03961, equation 4): k where all is even, more elsewhere.

    `share` is E, `choice` N E, and `token` N, the weight of each token.
    """
    mean_probability = choice.softmax(dim=-1).T @ token  # E
    return (share * mean_probability).sum() * share.numel()


def bias_gradient(share: torch.Tensor, choice: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
    """Return zero, with a gradient that moves each expert's bias against its excess of tokens
    (https://arxiv.org/abs/2408.15664).

    The optimizer moves the bias, so the gradient accumulates, is reduced over processes and resumes like any other.
    """
    bias = choice.T @ token  # E
    excess = share - share.mean()  # E
    return (excess * (bias - bias.detach())).sum() * BIAS_GRADIENT


BALANCES = {"loss": switch_loss, "bias": bias_gradient}
