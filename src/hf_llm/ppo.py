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
from typing import TYPE_CHECKING, Any, Literal

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import format_row_counts, load_preferences, load_prompts
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import RolloutSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer

    import hf_llm.posttraining.ppo.config


@dataclass
class PpoSection(RolloutSection):
    """The `ppo` section."""

    rows: Literal["conversations", "preferences"] = "conversations"
    """The kind of rows in `data`; completions are sampled for their prompts. Of preferences, reward functions get the
    chosen and the rejected answer; of conversations, the answer if there is one, and the other columns."""
    training: Settings["hf_llm.posttraining.ppo.config.PPOConfig"] = field(default_factory=Settings)
    """Settings of PPO, and those of transformers.TrainingArguments by their own names."""


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    ppo: PpoSection
    """Proximal policy optimisation on sampled completions."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "ppo")
    section = recipe.ppo
    inputs = run.starting_model("ppo", section.model) | section.reward_input(run)

    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("ppo", recipe, inputs) as output:
        if output.is_complete:
            return
        trainer, counts = build_stage_trainer(recipe, output)
        headline = (
            "reward {eval_reward:.2f} on {eval_completions:,} held-out prompts, "
            "KL to the reference {eval_kl_per_completion:.2f} nats per completion"
        )
        measure = partial(warn_of_no_effect, trainer)
        train_and_save(trainer, output, run, headline, measure, licenses=section.licenses, rows=counts)


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[Trainer, dict[str, Any]]":
    """Build the trainer of this stage for the model at `output.start`; also return the counts of rows."""
    from transformers import set_seed

    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
    from hf_llm.posttraining.reward_check import ConstantRewardWarning
    from hf_llm.posttraining.reward_functions import load_reward_functions, try_reward_functions
    from hf_llm.posttraining.rows.overlong_rows import fit_rows, prompt_limit
    from hf_llm.posttraining.rows.refused_rows import drop_refused_rows
    from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length

    section = recipe.ppo
    load = load_prompts if section.rows == "conversations" else load_preferences
    train, evaluation, counts = load(
        section.data, section.evaluation_share, recipe.seed, section.allow_drop, output.path.with_name("corpus")
    )
    print_main(format_row_counts(counts))
    tokenizer = load_chat_tokenizer(output.start, output.path.parent)
    completion_length = section.training.get("max_completion_length", PPOConfig.max_completion_length)
    limit = prompt_limit(max_row_length(section, output.start, "ppo"), completion_length, "ppo")
    rows, counts["refused"] = drop_refused_rows([train, evaluation], (), tokenizer, section.allow_drop)
    rows, too_long = fit_rows(rows, (), tokenizer, limit, section, "ppo")
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
    return trainer, counts


def load_critic(section: PpoSection, start: Path | str) -> "PreTrainedModel | None":
    """Load the model at `start` as a critic; None where a value head on the policy is used instead."""
    from hf_llm.model.load import load_reward_model

    default = "head" if section.lora is not None else "separate"
    kind = section.training.get("critic") or default
    return load_reward_model(start) if kind == "separate" else None


if __name__ == "__main__":
    main()
