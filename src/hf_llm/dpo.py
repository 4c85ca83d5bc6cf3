"""Teach the chat model which of two answers people prefer (direct preference optimisation); makes runs/<name>/dpo.

    accelerate launch -m hf_llm.dpo recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.dpo recipes/gpt125m.yaml

Rafailov et al. 2023, https://arxiv.org/abs/2305.18290. With a `lora` section only adapters are trained, and the
reference is the same model with the adapter switched off; without one, the reference's log-probabilities are computed
before training, so that one copy of the weights is enough.
"""

from dataclasses import dataclass, field

from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from hf_llm.data.conversations import ConversationSource, load_preferences
from hf_llm.errors import command
from hf_llm.lifecycle import Run
from hf_llm.model.loading import load_model, load_tokenizer, stop_at_end_of_turn
from hf_llm.monitoring.reporters import reporters
from hf_llm.monitoring.watch import watch
from hf_llm.recipe import Settings, load_recipe
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.training.arguments import training_arguments
from hf_llm.training.ending import finish


@dataclass
class PreferenceTuning:
    """The `dpo` section."""

    data: list[ConversationSource]
    training: Settings[DPOConfig] = field(default_factory=Settings)
    lora: Settings[LoraConfig] | None = None
    evaluation_share: float = field(default=0.05, metadata={"help": "share of the rows kept out for evaluation"})
    allow_drop: float = field(default=0.01, metadata={"help": "share of unusable rows above which this stops"})
    model: str | None = field(default=None, metadata={"help": "a model folder or Hub id to start from instead"})


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    dpo: PreferenceTuning
    seed: int = 42


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    section = recipe.dpo
    before = run.model_before("dpo")
    start = run.given(section.model) or run.require(before)
    making = run.begin("dpo", **{before: start})
    if making.finished:
        return
    tokenizer = load_tokenizer(start)
    check_tokenizer(tokenizer, chat=True)
    pairs, held_out, counts = load_preferences(
        section.data, section.evaluation_share, recipe.seed, allow_drop=section.allow_drop
    )
    model = stop_at_end_of_turn(load_model(start), tokenizer)
    arguments = training_arguments(
        DPOConfig,
        section.training,
        making.path,
        recipe.seed,
        "dpo",
        max_length=model.config.max_position_embeddings,
        precompute_ref_log_probs=section.lora is None,
        report_to=reporters(section.training.get("report_to")),
        eval_strategy="epoch",
    )
    trainer = DPOTrainer(
        model=model,
        args=arguments,
        train_dataset=pairs,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(**{"task_type": "CAUSAL_LM", **section.lora}) if section.lora is not None else None,
    )
    watch(trainer, likelihood=False)
    finish(
        trainer,
        making,
        run,
        "{eval_rewards/accuracies:.0%} of held-out pairs ranked right, margin {eval_rewards/margins:.2f}",
        licenses=[source.license for source in section.data],
        rows=counts,
    )


if __name__ == "__main__":
    main()
