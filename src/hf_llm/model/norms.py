"""Norms, by their name in the configuration. This file travels with the weights."""

import torch
import torch.nn.functional as F
from torch import nn


class HfLlmRMSNorm(nn.Module):
    """Divide by the root mean square, in float32 whatever comes in (https://arxiv.org/abs/1910.07467)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = F.rms_norm(x.float(), self.weight.shape, self.weight.float(), self.eps)
        return normed.to(x.dtype)

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


# LayerNorm with weight and bias is that of GPT-2 (https://arxiv.org/abs/1607.06450).
NORMS = {"rms_norm": HfLlmRMSNorm, "layer_norm": nn.LayerNorm}
