"""Fine-tune the base model on conversations, learning only the assistant's words; makes runs/<name>/sft.

    accelerate launch -m hf_llm.sft recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.sft recipes/gpt125m.yaml

With a `lora` section only adapters are trained; they are merged into the saved model and kept beside it in adapter/.
"""

from dataclasses import dataclass, field

from peft import LoraConfig
from trl import SFTConfig, SFTTrainer

from hf_llm.data.conversations import ConversationSource, load_conversations
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
class Finetuning:
    """The `sft` section."""

    data: list[ConversationSource]
    training: Settings[SFTConfig] = field(default_factory=Settings)
    lora: Settings[LoraConfig] | None = None
    evaluation_share: float = field(default=0.05, metadata={"help": "share of the rows kept out for evaluation"})
    allow_drop: float = field(default=0.01, metadata={"help": "share of unusable rows above which this stops"})
    model: str | None = field(default=None, metadata={"help": "a model folder or Hub id to start from instead"})


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    sft: Finetuning
    seed: int = 42


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    section = recipe.sft
    start = run.given(section.model) or run.require("base")
    making = run.begin("sft", base=start)
    if making.finished:
        return
    tokenizer = load_tokenizer(start)
    check_tokenizer(tokenizer, chat=True)
    rows, held_out, counts = load_conversations(
        section.data, section.evaluation_share, recipe.seed, allow_drop=section.allow_drop
    )
    model = stop_at_end_of_turn(load_model(start), tokenizer)
    arguments = training_arguments(
        SFTConfig,
        section.training,
        making.path,
        recipe.seed,
        "sft",
        max_length=model.config.max_position_embeddings,
        assistant_only_loss=True,
        report_to=reporters(section.training.get("report_to")),
        eval_strategy="epoch",
    )
    trainer = SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=held_out,
        processing_class=tokenizer,
        peft_config=LoraConfig(**{"task_type": "CAUSAL_LM", **section.lora}) if section.lora is not None else None,
    )
    watch(trainer)
    finish(
        trainer,
        making,
        run,
        "loss {eval_loss:.3f} on held-out answers, {eval_mean_token_accuracy:.0%} of their tokens right",
        licenses=[source.license for source in section.data],
        rows=counts,
    )


if __name__ == "__main__":
    main()
