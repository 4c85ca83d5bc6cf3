"""The arithmetic of proximal policy optimisation: from scores and log-probabilities to advantages and the two losses.

Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with generalised advantage estimation (Schulman et al. 2015,
https://arxiv.org/abs/1506.02438) and the KL penalty of Ziegler et al. 2019 (https://arxiv.org/abs/1909.08593).

Shapes: B completions of up to T tokens; `mask` (B T, bool) says which of them are tokens of a completion.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

Estimator = Literal["k1", "k3"]

MAX_KL_ERROR = 0.2  # relative, in one update of the KL coefficient; Ziegler, section 2.2


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Log-probability of each token (B T) under its logits (B T V) at a temperature; float32."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def kl_estimate(log_probs: torch.Tensor, reference: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """KL(policy || reference) of each token in nats, from samples of the policy.

    k1 is log p/q, unbiased; k3 is q/p - 1 - log q/p, unbiased and never negative
    (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference - log_probs
    if estimator == "k1":
        return -log_ratio
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """The reward of each token (B T): the KL penalty, and with the last token of a completion its score (B)."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Generalised advantages, and the returns (advantage + value) that the critic is trained on.

    Both are B T, 0 off the mask. `values` (B T) are of the state before each token. Nothing follows a completion, ended
    or cut off.
    """
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])  # B
    next_value = torch.zeros_like(rewards[:, 0])  # B
    for t in reversed(range(rewards.shape[1])):
        temporal_difference = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (temporal_difference + gamma * lam * advantage) * mask[:, t]
        next_value = values[:, t] * mask[:, t]
        advantages[:, t] = advantage
    return advantages, (advantages + values) * mask


def sum_moments(values: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Count, sum and sum of squares (float64) of the masked values, to be added over processes."""
    kept = values.double() * mask
    return torch.stack([mask.double().sum(), kept.sum(), (kept * kept).sum()])


def mean_and_deviation(moments: torch.Tensor) -> tuple[float, float]:
    """Mean and unbiased standard deviation of what `sum_moments` has counted."""
    count, total, squares = moments.tolist()
    mean = total / count
    variance = max(squares - total * mean, 0.0) / max(count - 1, 1)
    return mean, variance**0.5


def policy_loss(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clipped surrogate loss of each token, and whether clipping made it larger (PPO paper, equation 7)."""
    ratio = (log_probs - old).exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.max(plain, clipped), clipped > plain


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the squared error of each value, and whether clipping made it larger.

    It is at least that of the value kept within `cliprange` of the old one.
    """
    plain = (values - returns) ** 2
    clipped_values = old + (values - old).clamp(-cliprange, cliprange)
    clipped = (clipped_values - returns) ** 2
    return 0.5 * torch.max(plain, clipped), clipped > plain


@dataclass
class KLController:
    """The coefficient of the KL penalty: fixed, or steered towards `target` nats per completion (Ziegler, section 2.2).

    It changes by at most a fifth in `horizon` completions.
    """

    coef: float
    target: float | None
    horizon: int

    def update(self, kl: float, completions: int) -> None:
        """Steer by the last `completions`, which were `kl` nats away from the reference on average."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
        self.coef *= 1 + error * completions / self.horizon


@dataclass
class RunningScale:
    """Mean and deviation of all scores so far, to bring scores of any size to about one (float64 sums)."""

    sums: torch.Tensor  # count, sum, sum of squares

    def add(self, sums: torch.Tensor) -> None:
        """Count further scores, as `sum_moments` gives them."""
        self.sums = self.sums + sums

    def normalize(self, scores: torch.Tensor) -> torch.Tensor:
        """The scores less the mean, over the deviation."""
        mean, deviation = mean_and_deviation(self.sums)
        return (scores - mean) / max(deviation, 1e-8)
