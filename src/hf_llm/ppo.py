"""Let the chat model answer prompts and learn from how good the answers are (PPO); makes runs/<name>/ppo.

    accelerate launch -m hf_llm.ppo recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.ppo recipes/gpt125m.yaml

Ouyang et al. 2022, https://arxiv.org/abs/2203.02155. The run's own reward model says how good an answer is, another
one (`reward_model`), or Python functions (`reward_functions`). A penalty keeps the model near the one it started as;
with a `lora` section that is the same model with the adapter switched off.
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
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import Run, read_run
from hf_llm.posttraining.build_trainer import Tuning, chat_tokenizer, longest_row, tuning_trainer
from hf_llm.posttraining.ppo.trainer import PPOConfig, PPOTrainer
from hf_llm.posttraining.reward_functions import reward_functions
from hf_llm.posttraining.trainers import fitting
from hf_llm.training.train_and_save import finish


@dataclass
class PPOTuning(Tuning):
    """The `ppo` section."""

    rows: Literal["conversations", "preferences"] = field(
        default="conversations", metadata={"help": "what `data` holds; its prompts are answered"}
    )
    reward_model: str | None = field(
        default=None, metadata={"help": "a reward model's folder or Hub id, instead of the run's own"}
    )
    reward_functions: list[str] = field(
        default_factory=list, metadata={"help": "Python functions, module:function, called as TRL calls them"}
    )
    training: Settings[PPOConfig] = field(default_factory=Settings)


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    ppo: PPOTuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    section, before = recipe.ppo, run.starting_folder("ppo")
    judge = judge_of(section, run)
    inputs = {before: section.model, **({"reward": judge} if judge is not None else {})}
    with run.open_stage("ppo", recipe, inputs) as making:
        if making.is_complete:
            return
        start = making.sources[before]
        *rows, counts = prompts_of(section, recipe.seed)
        tokenizer = chat_tokenizer(start, run.root)
        answer = section.training.get("max_completion_length", PPOConfig.max_completion_length)
        room = longest_row(section, start, "ppo") - answer
        rows, counts["too_long"] = fitting(rows, (), tokenizer, room, section)
        functions = reward_functions(section.reward_functions, judge, tokenizer)
        set_seed(recipe.seed)  # of a new critic's score
        trainer_class = partial(PPOTrainer, reward_functions=functions, critic=critic_of(section, judge, start))
        trainer = tuning_trainer(trainer_class, PPOConfig, section, making, recipe.seed, start, rows)
        watch(trainer, likelihood=False, price_per_hour=recipe.price_per_hour)
        headline = "reward {eval_reward:.2f} on held-out prompts, {eval_kl:.2f} nats from where it started"
        finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)


def judge_of(section: PPOTuning, run: Run) -> Path | str | None:
    """The reward model: the one the section names, else the run's own where the recipe makes one and the section names
    no functions."""
    if section.reward_model is not None:
        return run.resolve_source(section.reward_model)
    return run.ensure_stage("reward") if run.is_requested("reward") and not section.reward_functions else None


def prompts_of(section: PPOTuning, seed: int) -> tuple[Dataset, Dataset, dict[str, Any]]:
    """Training and evaluation rows with the column `prompt` beside what else a reward function may want to see: the
    data's own `answer`, or `chosen` and `rejected`."""
    load = load_conversations if section.rows == "conversations" else load_preferences
    train, held_out, counts = load(section.data, section.evaluation_share, seed, section.allow_drop)
    if section.rows == "conversations":
        train, held_out = (part.map(question, remove_columns=part.column_names) for part in (train, held_out))
    return train, held_out, counts


def question(row: dict) -> dict[str, Any]:
    """A conversation up to its last answer, and that answer."""
    return {"prompt": row["messages"][:-1], "answer": row["messages"][-1]["content"]}


def critic_of(section: PPOTuning, judge: Path | str | None, start: Path | str) -> PreTrainedModel | None:
    """A critic made of the reward model, or of the model itself where there is none; None for a value head."""
    wanted = section.training.get("critic") or ("head" if section.lora is not None else "separate")
    return load_reward_model(judge or start) if wanted == "separate" else None


if __name__ == "__main__":
    main()
