"""PPO's arithmetic against plain loops over answers and tokens."""

import math

import pytest
import torch

from hf_llm.posttraining.ppo.losses import (
    KLController,
    RunningScale,
    advantages_and_returns,
    kl_estimate,
    mean_and_deviation,
    policy_loss,
    sum_moments,
    token_log_probs,
    token_rewards,
    value_loss,
)

LENGTHS = [5, 1, 3, 4]
B, T = len(LENGTHS), max(LENGTHS)
MASK = torch.arange(T) < torch.tensor(LENGTHS)[:, None]


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_tokens_log_probability_is_that_of_the_distribution_at_the_temperature():
    logits, tokens = random(B, T, 7, seed=0).float(), torch.randint(0, 7, (B, T))
    found = token_log_probs(logits, tokens, temperature=0.7)
    for b in range(B):
        for t in range(T):
            weights = [math.exp(value / 0.7) for value in logits[b, t].tolist()]
            assert found[b, t].item() == pytest.approx(math.log(weights[tokens[b, t]] / sum(weights)), abs=1e-5)


@pytest.mark.parametrize("estimator", ["k1", "k3"])
def test_both_estimators_average_to_the_divergence_and_k3_is_never_negative(estimator):
    p, q = torch.softmax(random(6, seed=1), 0), torch.softmax(random(6, seed=2), 0)
    estimates = kl_estimate(p.log(), q.log(), estimator)
    assert (p * estimates).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-12)
    assert estimator == "k1" or (estimates >= 0).all()


def test_an_answers_score_is_earned_with_its_last_token():
    scores, kl = random(B, seed=3), random(B, T, seed=4)
    rewards = token_rewards(scores, kl, MASK, kl_coef=0.5)
    for b, length in enumerate(LENGTHS):
        for t in range(T):
            expected = -0.5 * kl[b, t] * (t < length) + scores[b] * (t == length - 1)
            assert rewards[b, t].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (1.0, 1.0), (0.97, 0.0)])
def test_advantages_are_the_discounted_sums_of_surprises(gamma, lam):
    rewards, values = random(B, T, seed=5) * MASK, random(B, T, seed=6)
    advantages, returns = advantages_and_returns(rewards, values, MASK, gamma, lam)
    for b, length in enumerate(LENGTHS):
        value = [*values[b, :length].tolist(), 0.0]
        surprises = [rewards[b, t].item() + gamma * value[t + 1] - value[t] for t in range(length)]
        for t in range(T):
            expected = sum((gamma * lam) ** (s - t) * surprises[s] for s in range(t, length)) if t < length else 0.0
            assert advantages[b, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[b, t].item() == pytest.approx(expected + value[t] if t < length else 0.0, abs=1e-12)


def test_with_lambda_1_and_no_discount_the_return_is_the_sum_of_the_rewards_to_come():
    rewards = random(B, T, seed=5) * MASK
    _, returns = advantages_and_returns(rewards, random(B, T, seed=6), MASK, 1.0, 1.0)
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            assert returns[b, t].item() == pytest.approx(rewards[b, t:length].sum().item(), abs=1e-12)


def test_moments_of_two_processes_add_up_to_those_of_all():
    values = random(B, T, seed=7)
    mean, deviation = mean_and_deviation(sum_moments(values[:1], MASK[:1]) + sum_moments(values[1:], MASK[1:]))
    assert mean == pytest.approx(values[MASK].mean().item(), abs=1e-12)
    assert deviation == pytest.approx(values[MASK].std().item(), abs=1e-12)


def plain_losses(log_probs, values, batch, cliprange, cliprange_value):
    """Policy and value loss of every token by the formulas of the paper, one number at a time."""
    policy, value = [], []
    for b, length in enumerate(LENGTHS):
        for t in range(length):
            ratio = torch.exp(log_probs[b, t] - batch["old"][b, t])
            kept = min(max(ratio, ratio.new_tensor(1 - cliprange)), ratio.new_tensor(1 + cliprange))
            advantage = batch["advantages"][b, t]
            policy.append(-min(ratio * advantage, kept * advantage))
            low, high = batch["values"][b, t] - cliprange_value, batch["values"][b, t] + cliprange_value
            near = min(max(values[b, t], low), high)
            errors = (values[b, t] - batch["returns"][b, t]) ** 2, (near - batch["returns"][b, t]) ** 2
            value.append(max(errors) / 2)
    return policy, value


def test_the_losses_and_their_gradients_are_those_of_a_plain_loop():
    batch = {name: random(B, T, seed=seed) for seed, name in enumerate(("old", "advantages", "values", "returns"), 10)}
    log_probs = (batch["old"] + 0.3 * random(B, T, seed=20)).requires_grad_()
    values = (batch["values"] + 0.3 * random(B, T, seed=21)).requires_grad_()

    surrogate, clipped = policy_loss(log_probs, batch["old"], batch["advantages"], 0.2)
    errors, values_clipped = value_loss(values, batch["values"], batch["returns"], 0.2)
    loss = ((surrogate + 0.1 * errors) * MASK).sum() / MASK.sum()
    gradients = torch.autograd.grad(loss, (log_probs, values))

    policy, value = plain_losses(log_probs, values, batch, 0.2, 0.2)
    expected = (sum(policy) + 0.1 * sum(value)) / len(policy)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    for own, plain in zip(gradients, torch.autograd.grad(expected, (log_probs, values)), strict=True):
        torch.testing.assert_close(own, plain, atol=1e-12, rtol=0)
    assert 0 < (clipped & MASK).sum() < MASK.sum()
    assert 0 < (values_clipped & MASK).sum() < MASK.sum()


def test_the_coefficient_rises_above_the_target_and_falls_below_it_and_stays_without_one():
    fixed, steered = KLController(0.1, None, 100), KLController(0.1, 2.0, 100)
    fixed.update(50.0, 10)
    assert fixed.coef == 0.1
    steered.update(50.0, 10)  # far above: a fifth of ten answers in a hundred
    assert steered.coef == pytest.approx(0.1 * 1.02)
    steered.update(1.9, 10)
    assert steered.coef == pytest.approx(0.1 * 1.02 * (1 - 0.05 * 0.1))


def test_scores_are_brought_to_mean_0_and_deviation_1_of_all_that_were_seen():
    scale, seen = RunningScale(torch.zeros(3, dtype=torch.float64)), []
    for number in range(3):
        scores = 5 + 3 * random(20, seed=30 + number)
        seen.append(scores)
        scale.add(sum_moments(scores, torch.ones_like(scores)))
    every = torch.cat(seen)
    torch.testing.assert_close(scale.normalize(scores), (scores - every.mean()) / every.std())
