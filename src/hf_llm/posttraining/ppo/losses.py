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

# The relative error of the KL is clipped to plus and minus this in an update of the coefficient; Ziegler, section 2.2.
MAX_KL_ERROR = 0.2


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
    """Compute the log-probability of each token (B T) under its logits (B T V) at a temperature, in float32."""
    logits = logits.float()
    if temperature != 1:
        logits = logits / temperature
    return -F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), reduction="none").view(tokens.shape)


def kl_estimate(log_probs: torch.Tensor, reference: torch.Tensor, estimator: Estimator) -> torch.Tensor:
    """Estimate KL(policy || reference) at each token in nats, from samples of the policy.

    k1 is log p/q, unbiased; k3 is q/p - 1 - log q/p, unbiased and never negative
    (http://joschu.net/blog/kl-approx.html).
    """
    log_ratio = reference - log_probs
    if estimator == "k1":
        return -log_ratio
    return log_ratio.exp() - 1 - log_ratio


def token_rewards(scores: torch.Tensor, kl: torch.Tensor, mask: torch.Tensor, kl_coef: float) -> torch.Tensor:
    """Compute the reward of each token (B T): minus its KL penalty, plus the completion's score at the last token."""
    rewards = -kl_coef * kl * mask
    last = mask.sum(1) - 1
    rewards[torch.arange(len(scores), device=scores.device), last] += scores
    return rewards


def advantages_and_returns(
    rewards: torch.Tensor, values: torch.Tensor, mask: torch.Tensor, gamma: float, lam: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute generalised advantages, and the returns (advantage + value) that the critic is trained on.

    Both are B T, 0 off the mask. `values` (B T) are those of the state before each token. The value after a
    completion's last token is 0, whether the completion ended or was cut off.
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
    """Return count, sum and sum of squares (float64) of the values on the mask, to be summed over processes."""
    masked = values.double() * mask
    return torch.stack([mask.double().sum(), masked.sum(), (masked * masked).sum()])


def mean_and_deviation(moments: torch.Tensor) -> tuple[float, float]:
    """Compute mean and unbiased standard deviation from what `sum_moments` returns."""
    count, total, squares = moments.tolist()
    mean = total / count
    variance = max(squares - total * mean, 0.0) / max(count - 1, 1)
    return mean, variance**0.5


def policy_loss(
    log_probs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the clipped surrogate loss of each token, and whether clipping made it larger (PPO paper, equation 7).

    `old` are the log-probabilities under the policy that sampled the tokens.
    """
    ratio = (log_probs - old).exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - cliprange, 1 + cliprange)
    return torch.max(unclipped, clipped), clipped > unclipped


def value_loss(
    values: torch.Tensor, old: torch.Tensor, returns: torch.Tensor, cliprange: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute half the squared error of each value, and whether clipping made it larger.

    The error is the larger of two: that of the value, and that of the value clipped to within `cliprange` of `old`,
    the value when the completion was sampled.
    """
    unclipped = (values - returns) ** 2
    clipped_values = old + (values - old).clamp(-cliprange, cliprange)
    clipped = (clipped_values - returns) ** 2
    return 0.5 * torch.max(unclipped, clipped), clipped > unclipped


@dataclass
class KLController:
    """The coefficient of the KL penalty: fixed, or steered towards `target` nats per completion (Ziegler, section 2.2).

    It changes by at most a fifth in `horizon` completions.
    """

    coef: float
    target: float | None
    horizon: int

    def update(self, kl: float, completions: int) -> None:
        """Adjust `coef` after `completions` more, whose mean KL to the reference was `kl` nats per completion."""
        if self.target is None:
            return
        error = min(max(kl / self.target - 1, -MAX_KL_ERROR), MAX_KL_ERROR)
        self.coef *= 1 + error * completions / self.horizon


@dataclass
class RunningScale:
    """Running mean and deviation of all scores, to normalise scores of any size (float64 sums)."""

    sums: torch.Tensor  # count, sum, sum of squares

    def add(self, sums: torch.Tensor) -> None:
        """Count further scores, as `sum_moments` gives them."""
        self.sums = self.sums + sums

    def normalize(self, scores: torch.Tensor) -> torch.Tensor:
        """Subtract the running mean from the scores, and divide by the running deviation."""
        mean, deviation = mean_and_deviation(self.sums)
        return (scores - mean) / max(deviation, 1e-8)
