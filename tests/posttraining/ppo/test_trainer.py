"""The PPO trainer: its loss, its optimum, its reference, and its checkpoints."""

import json
from functools import partial

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForSequenceClassification

from hf_llm.core.errors import UserError
from hf_llm.model.load import load_model
from hf_llm.posttraining.ppo.actor_critic import completion_log_probs
from hf_llm.posttraining.ppo.rollouts import PromptBlocks, sample_completions, shuffle_into_minibatches
from hf_llm.posttraining.ppo.trainer import PPOConfig, cut_to_longest
from hf_llm.training.fault_tolerance.determinism import make_generator
from tests.posttraining.ppo.ppo_tasks import LIMIT, nearness_to_four, rows, share_of_letter, tiny_ppo
from tests.tiny_models import tiny_config
from tests.training.fault_tolerance.faults import kill_in_step, run

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}


def tiny_critic():
    torch.manual_seed(1)
    return AutoModelForSequenceClassification.from_config(tiny_config(num_labels=1))


def with_critic(folder, **changes):
    return tiny_ppo(folder, critic=tiny_critic(), **changes)


def with_lora(folder, **changes):
    return tiny_ppo(folder, peft_config=LoraConfig(**LORA), learning_rate=1e-2, **changes)


def steered(folder, **changes):
    return tiny_ppo(folder, kl_target=1.0, kl_horizon=100, normalize_rewards=True, missing_eos_penalty=0.5, **changes)


def entries(trainer, key="reward"):
    return [entry for entry in trainer.state.log_history if key in entry]


# ---- sampling


def sampled(trainer, seed=0):
    prompts = trainer.train_dataset[:6]["prompt_ids"]
    generator = make_generator(torch.device("cpu"), seed)
    return sample_completions(trainer.model.policy.eval(), prompts, LIMIT, 0.8, list(range(100)), 256, generator)


def test_sampled_log_probabilities_are_those_of_one_pass_over_the_answer_alone(tmp_path):
    trainer = tiny_ppo(tmp_path)
    answers, prompts = sampled(trainer), trainer.train_dataset[:6]["prompt_ids"]
    lengths = answers.mask.sum(1).tolist()
    assert len(set(lengths)) > 2  # some leave the batch before others
    for row, length in enumerate(lengths):
        ids = torch.tensor([prompts[row] + answers.tokens[row, :length].tolist()])
        alone = completion_log_probs(trainer.model.policy, ids, torch.ones_like(ids), length, 0.8)
        torch.testing.assert_close(answers.log_probs[row, :length], alone[0], atol=1e-5, rtol=0)
        assert answers.ended[row] == (answers.tokens[row, length - 1] < 100)
        assert (answers.tokens[row, : length - 1] >= 100).all()


def test_samples_depend_on_their_seed_and_follow_the_models_distribution(tmp_path):
    trainer = tiny_ppo(tmp_path)
    assert torch.equal(sampled(trainer).tokens, sampled(trainer).tokens)
    assert not torch.equal(sampled(trainer).tokens, sampled(trainer, seed=1).tokens)
    prompt = trainer.train_dataset[0]["prompt_ids"]
    generator = make_generator(torch.device("cpu"), 3)
    answers = sample_completions(trainer.model.policy, [prompt] * 4000, 1, 1.0, [], 256, generator)
    expected = trainer.model.policy(torch.tensor([prompt])).logits[0, -1].softmax(0)
    counts = torch.bincount(answers.tokens[:, 0], minlength=320) / 4000
    assert (counts - expected).abs().max() < 5 * (expected.max() / 4000).sqrt()


def test_every_prompt_is_asked_in_an_epoch_and_a_block_stays_together():
    blocks = list(PromptBlocks(rows=10, block=4, repeats=3, seed=0, epoch=lambda: 0))
    assert len(blocks) == len(PromptBlocks(10, 4, 3, 0, lambda: 0)) == 36
    assert set(blocks) == set(range(10))
    for start in range(0, 36, 12):
        assert blocks[start : start + 4] == blocks[start + 4 : start + 8] == blocks[start + 8 : start + 12]
    assert blocks != list(PromptBlocks(10, 4, 3, 0, lambda: 1))


def test_mini_batches_hold_every_answer_once_and_are_sorted_by_length():
    lengths = torch.tensor([5, 1, 4, 2, 3, 6, 2, 5])
    order = shuffle_into_minibatches(lengths, 3, 2, make_generator(torch.device("cpu"), 0))
    assert [sorted(row) for row in order.tolist()] == [list(range(8))] * 3
    for half in order.view(6, 4):
        assert lengths[half].tolist() == sorted(lengths[half].tolist())
    assert order[0].tolist() != order[1].tolist()


# ---- the loss


def gradients(trainer):
    """The gradients of the next mini-batch; the first one makes a rollout of the first prompts."""
    batch = next(iter(trainer.get_train_dataloader()))
    for _ in range(trainer.args.gradient_accumulation_steps):
        trainer.training_step(trainer.model, batch)
    found = {name: part.grad.clone() for name, part in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    return found


@pytest.mark.parametrize("make", [tiny_ppo, with_critic], ids=["value head", "critic"])
def test_the_gradients_are_those_of_a_plain_loop_over_single_answers(make, tmp_path):
    """One answer at a time, no padding, the formulas written out; ratios and values moved away from 1 and from old."""
    trainer = make(tmp_path, reward=nearness_to_four, kl_coef=0.2, vf_coef=0.5)
    gradients(trainer)
    rollout, generator = trainer.rollout, torch.Generator().manual_seed(0)
    rollout.log_probs += 0.3 * torch.randn(rollout.log_probs.shape, generator=generator)
    rollout.values += 0.3 * torch.randn(rollout.values.shape, generator=generator)
    trainer.state.global_step = 3  # the second mini-batch of the second pass
    own = gradients(trainer)

    chosen = rollout.order[1, 8:].tolist()
    total, count = 0.0, sum(int(rollout.mask[row].sum()) for row in chosen)
    for row in chosen:
        prompt, length = rollout.queries[row][rollout.query_mask[row]], int(rollout.mask[row].sum())
        ids = torch.cat([prompt, rollout.tokens[row, :length]])[None]
        log_probs, values = trainer.model(ids, torch.ones_like(ids), length, 1.0)
        for t in range(length):
            ratio = (log_probs[0, t] - rollout.log_probs[row, t]).exp()
            advantage, old = rollout.advantages[row, t], rollout.values[row, t]
            gain = torch.min(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
            near, goal = values[0, t].clamp(old - 0.2, old + 0.2), rollout.returns[row, t]
            error = torch.max((values[0, t] - goal) ** 2, (near - goal) ** 2) / 2
            total = total + (0.5 * error - gain) / count
    total.backward()
    for name, part in trainer.model.named_parameters():
        torch.testing.assert_close(own[name], part.grad, atol=1e-5, rtol=0)
    assert max(part.abs().max() for part in own.values()) > 1e-2


def test_accumulation_changes_no_gradient(tmp_path):
    once = gradients(tiny_ppo(tmp_path, nearness_to_four, per_device_train_batch_size=8, gradient_accumulation_steps=1))
    often = gradients(
        tiny_ppo(tmp_path, nearness_to_four, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    )
    for name in once:
        torch.testing.assert_close(once[name], often[name], atol=1e-6, rtol=0)
    assert max(part.abs().max() for part in once.values()) > 1e-2


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"activation_checkpointing": True}], ids=str)
def test_the_first_step_after_a_rollout_starts_at_ratio_1(changes, tmp_path):
    trainer = tiny_ppo(tmp_path, max_steps=1, logging_steps=1, **changes)
    trainer.train()
    (entry,) = entries(trainer)
    assert entry["clip_fraction"] == 0
    assert entry["update_kl"] == pytest.approx(0, abs=1e-6)
    assert entry["kl_per_completion"] == pytest.approx(0, abs=1e-4)


# ---- what it learns


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reward", "steps", "schedule"),
    [(share_of_letter, 150, "constant"), (nearness_to_four, 220, "linear")],
    ids=["one token", "length"],
)
def test_a_known_optimum_is_reached_to_95_percent(reward, steps, schedule, tmp_path):
    settings = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "learning_rate": 3e-3}
    settings |= {"kl_coef": 0.0, "max_steps": steps, "lr_scheduler_type": schedule, "save_strategy": "no"}
    trainer = tiny_ppo(tmp_path, reward, critic=tiny_critic(), logging_steps=50, **settings)
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()
    assert before < 0.6
    assert after["eval_reward"] > 0.95
    assert after["eval_kl_per_completion"] > 2


@pytest.mark.slow
def test_a_very_large_kl_coefficient_keeps_the_model_at_the_reference(tmp_path):
    settings = {"per_device_train_batch_size": 32, "gradient_accumulation_steps": 1, "lr_scheduler_type": "linear"}
    settings |= {"max_steps": 60, "save_strategy": "no", "kl_estimator": "k3", "logging_steps": 50}
    free = tiny_ppo(tmp_path, nearness_to_four, kl_coef=0.0, **settings)
    held = tiny_ppo(tmp_path, nearness_to_four, kl_coef=100.0, **settings)
    for trainer in (free, held):
        trainer.train()
    assert free.evaluate()["eval_kl_per_completion"] > 0.2
    assert held.evaluate()["eval_kl_per_completion"] < 0.04


def test_an_adaptive_coefficient_falls_at_the_reference_and_rises_far_from_it(tmp_path):
    settings = {"kl_coef": 1e-3, "kl_target": 1e-4, "kl_horizon": 64, "learning_rate": 1e-2, "kl_estimator": "k3"}
    trainer = tiny_ppo(tmp_path, nearness_to_four, logging_steps=1, save_strategy="no", **settings)
    trainer.train()
    first, second, third = [entry["kl_coef"] for entry in entries(trainer, "kl_coef")]
    assert first == 1e-3
    assert second == pytest.approx(0.95e-3)  # a fifth of 16 answers in 64
    assert third == pytest.approx(0.95e-3 * 1.05)


def test_scores_are_normalised_clipped_and_less_the_penalty_for_not_ending(tmp_path):
    trainer = tiny_ppo(tmp_path, normalize_rewards=True, reward_clip=1.0, missing_eos_penalty=0.25)
    scores = torch.tensor([[1.0, 2.0, 3.0, 10.0], [0.0, 0.0, 0.0, 1.0]])
    total, ended = scores.sum(0), torch.tensor([True, True, False, True])
    expected = ((total - total.mean()) / total.std()).clamp(-1, 1) - torch.tensor([0.0, 0.0, 0.25, 0.0])
    torch.testing.assert_close(trainer._combine_scores(scores, ended), expected)


def test_rewards_see_what_trl_shows_them_and_the_columns_of_the_rows(tmp_path):
    seen = []

    def reward(prompts, completions, completion_ids, number, **others):
        seen.append((prompts, completions, completion_ids, number, others))
        return [0.0] * len(prompts)

    trainer = tiny_ppo(tmp_path, reward, max_steps=1, save_strategy="no")
    trainer.train()
    prompts, completions, ids, number, others = seen[0]
    assert len(prompts) == len(completions) == len(ids) == len(number) == 16
    assert others.keys() == {"trainer_state", "log_metric", "log_extra"}  # as TRL adds them
    for prompt, completion, row in zip(prompts, completions, number, strict=True):
        assert prompt == rows()[row]["prompt"]
        assert [message["role"] for message in completion] == ["assistant"]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ([1.0], "1 numbers for 16 completions"),
        ([float("nan")] * 16, "16 of them not finite"),
        ([None] * 16, "no list of"),
    ],
)
def test_a_reward_function_that_returns_nonsense_is_named(values, words, tmp_path):
    def my_reward(prompts, completions, **columns):
        return values

    with pytest.raises(UserError, match=f"my_reward returned.*{words}"):
        tiny_ppo(tmp_path, my_reward, save_strategy="no").train()


def test_an_id_without_a_token_is_never_sampled(tmp_path):
    trainer = tiny_ppo(tmp_path)
    assert trainer.suppressed_ids == list(range(260, 320))  # a fifth of what a new model would sample
    batch = {"prompt_ids": [[5, 6, 7]] * 64, "prompt": [[{"role": "user", "content": "Hi"}]] * 64}
    completions, _ = trainer._sample_and_score(batch, torch.Generator().manual_seed(0))
    tokens = completions.tokens[completions.mask]
    assert len(tokens) > 200 and tokens.max() < 260
    assert torch.isfinite(completions.log_probs).all()


# ---- reference and adapters


def test_with_adapters_the_reference_is_the_model_without_them(tmp_path):
    trainer = with_lora(tmp_path, save_strategy="no")
    assert trainer.reference is None
    answers = sampled(trainer)
    ids, mask, width = cut_to_longest(answers, torch.arange(6))
    before = completion_log_probs(trainer.model.policy, ids, mask, width, 1.0).detach()
    trainer.train()
    _, _, reference = trainer._score_tokens(answers)
    torch.testing.assert_close(reference[:, :width], before * answers.mask[:, :width], atol=1e-5, rtol=0)
    assert entries(trainer)[-1]["kl_per_completion"] != 0
    frozen = [name for name, part in trainer.model.named_parameters() if not part.requires_grad]
    assert frozen and not [name for name in frozen if "lora" in name or "value_head" in name]


def test_without_adapters_the_reference_is_a_frozen_copy(tmp_path):
    trainer = tiny_ppo(tmp_path, save_strategy="no", learning_rate=1e-2)
    before = {name: part.clone() for name, part in trainer.model.policy.state_dict().items()}
    trainer.train()
    after = trainer.model.policy.state_dict()
    for name, part in trainer.reference.state_dict().items():
        assert torch.equal(part, before[name])
        assert not torch.equal(part, after[name]), name


# ---- checkpoints


@pytest.mark.parametrize(
    "make",
    [
        tiny_ppo,
        with_lora,
        pytest.param(with_critic, marks=pytest.mark.slow),
        pytest.param(steered, marks=pytest.mark.slow),
    ],
)
def test_a_run_killed_within_a_rollout_resumes_bit_equal(make, tmp_path):
    whole = run(tmp_path / "whole", build=make)
    assert whole.code == 0, whole.output
    assert run(tmp_path / "base", partial(kill_in_step, step=8), build=make).code == -9
    again = run(tmp_path / "base", build=make)
    assert "resuming at step 6 from" in again.output  # two steps into a rollout of four
    assert again.outcome["weights"] == whole.outcome["weights"]
    assert again.outcome["history"] == whole.outcome["history"]
    logs = [
        json.loads((tmp_path / name / "checkpoint-12/trainer_state.json").read_text()) for name in ("whole", "base")
    ]
    assert logs[0]["log_history"] == logs[1]["log_history"]  # rewards and all


def test_a_checkpoint_opens_as_a_language_model(tmp_path):
    trainer = with_critic(tmp_path)
    trainer.train()
    saved = load_model(tmp_path / "checkpoint-12")
    for name, part in trainer.model.policy.state_dict().items():
        assert torch.equal(part, saved.state_dict()[name])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_ppo_epochs": 0}, "num_ppo_epochs is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"lam": 1.5}, "lam is 1.5"),
        ({"kl_coef": -0.1}, "kl_coef is -0.1"),
        ({"reward_clip": 0.0}, "reward_clip is 0.0"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        PPOConfig(output_dir=str(tmp_path), use_cpu=True, **changes)


def test_prompts_that_leave_no_room_for_an_answer_are_refused(tmp_path):
    with pytest.raises(UserError, match="no prompt of 48 takes at most 4 tokens"):
        tiny_ppo(tmp_path, max_length=LIMIT + 4)
