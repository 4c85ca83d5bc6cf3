"""Sample completions and train the chat model on how good they are (PPO); makes runs/<name>/ppo.

    accelerate launch -m hf_llm.ppo recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.ppo recipes/gpt125m.yaml

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155. Rewards come from the run's own reward model, another one
(`reward_model`), or Python functions (`reward_functions`). A KL penalty keeps the model near its reference, the model
it started from; with a `lora` section that is the same model with the adapter switched off.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset
from transformers import PreTrainedModel, set_seed

from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import load_conversations, load_preferences
from hf_llm.model.load import load_reward_model
from hf_llm.monitoring.attach import attach_callbacks
from hf_llm.pipeline.run import BaseRecipe, read_run
from hf_llm.posttraining.build_trainer import build_trainer
from hf_llm.posttraining.overlong_rows import fit_rows, prompt_limit
from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
from hf_llm.posttraining.reward_check import ConstantRewardWarning
from hf_llm.posttraining.reward_functions import load_reward_functions, try_reward_functions
from hf_llm.posttraining.sections import RolloutSection
from hf_llm.posttraining.start_check import warn_of_no_effect
from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length
from hf_llm.training.train_and_save import train_and_save


@dataclass
class PpoSection(RolloutSection):
    """The `ppo` section."""

    rows: Literal["conversations", "preferences"] = "conversations"
    """The kind of rows in `data`; completions are sampled for their prompts."""
    training: Settings[PPOConfig] = field(default_factory=Settings)
    """Settings of PPO, and those of transformers.TrainingArguments by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    ppo: PpoSection
    """Proximal policy optimisation on sampled completions."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section = recipe.ppo
    inputs = run.starting_model("ppo", section.model) | section.reward_input(run)
    with run.open_stage("ppo", recipe, inputs) as output:
        if output.is_complete:
            return
        train, evaluation, counts = load_prompts_and_answers(section, recipe.seed)
        tokenizer = load_chat_tokenizer(output.start, run.root)
        completion_length = section.training.get("max_completion_length", PPOConfig.max_completion_length)
        limit = prompt_limit(max_row_length(section, output.start, "ppo"), completion_length, "ppo")
        rows, too_long = fit_rows([train, evaluation], (), tokenizer, limit, section, "ppo")
        counts |= too_long
        reward_model = output.sources.get("reward")
        functions = load_reward_functions(section.reward_functions, reward_model, tokenizer)
        try_reward_functions(functions, rows[0], tokenizer)

        set_seed(recipe.seed)  # for the weights of a new critic's score
        critic = load_critic(section, reward_model or output.start)
        trainer_class = partial(PPOTrainer, reward_functions=functions, critic=critic)
        trainer = build_trainer(trainer_class, PPOConfig, section, output, recipe.seed, rows)
        attach_callbacks(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
        trainer.add_callback(ConstantRewardWarning(trainer, functions))
        headline = (
            "reward {eval_reward:.2f} on held-out prompts, KL to the reference {eval_kl_per_completion:.2f} nats per "
            "completion"
        )
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def load_prompts_and_answers(section: PpoSection, seed: int) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Load training and evaluation rows with a column `prompt`, and the counts of rows kept and dropped.

    The rows also have the data's own `answer`, or `chosen` and `rejected`, for reward functions that compare with them.
    """
    load = load_conversations if section.rows == "conversations" else load_preferences
    train, evaluation, counts = load(section.data, section.evaluation_share, seed, section.allow_drop)
    if section.rows == "conversations":
        train = train.map(split_last_answer, remove_columns=train.column_names)
        evaluation = evaluation.map(split_last_answer, remove_columns=evaluation.column_names)
    return train, evaluation, counts


def split_last_answer(row: dict) -> dict[str, Any]:
    """Split a conversation into the messages before its last answer, and that answer."""
    return {"prompt": row["messages"][:-1], "answer": row["messages"][-1]["content"]}


def load_critic(section: PpoSection, start: Path | str) -> PreTrainedModel | None:
    """Load the model at `start` as a critic; None where a value head on the policy is used instead."""
    default = "head" if section.lora is not None else "separate"
    kind = section.training.get("critic") or default
    return load_reward_model(start) if kind == "separate" else None


if __name__ == "__main__":
    main()
