"""Pretrain a model from scratch on the token shards of runs/<name>/tokens; makes runs/<name>/base.

    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml
    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml --pretrain.training.max_steps=20

The same command goes on where an interrupted run stopped.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments, set_seed

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import command
from hf_llm.lifecycle import Run, say
from hf_llm.model.loading import config_class, load_tokenizer, new_model
from hf_llm.model.printout import describe, flops_per_token
from hf_llm.monitoring.reporters import reporters
from hf_llm.monitoring.samples import Samples
from hf_llm.monitoring.watch import watch
from hf_llm.recipe import Settings, load_recipe
from hf_llm.training.arguments import batch, training_arguments
from hf_llm.training.device import device_type
from hf_llm.training.ending import finish
from hf_llm.training.model_parallel import trainer_class
from hf_llm.training.parallelism import collator, launched_layout
from hf_llm.training.spikes import Spikes


@dataclass
class Pretraining:
    """The `pretrain` section."""

    tokens_per_step: int = field(metadata={"help": "split into micro-batch x accumulation x processes by the program"})
    training: Settings[TrainingArguments]
    context: int | None = field(default=None, metadata={"help": "tokens of a window; the model's context if left out"})
    evaluation_tokens: int = field(default=1 << 20, metadata={"help": "tokens of the validation split to evaluate on"})
    z_loss: float = field(default=0.0, metadata={"help": "1e-4 keeps logits from drifting; not in the logged loss"})
    samples: Samples = field(default_factory=Samples)
    spikes: Spikes = field(default_factory=Spikes)
    start_from: str | None = field(default=None, metadata={"help": "a model to go on with, a longer context for one"})
    tokens: str | None = field(default=None, metadata={"help": "a tokens folder of another run"})
    tokenizer: str | None = field(default=None, metadata={"help": "a tokenizer folder of another run"})


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    pretrain: Pretraining
    model: Settings[config_class] = field(default_factory=Settings)
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    recipe, run = load_recipe(Recipe, argv), Run(argv)
    section = recipe.pretrain
    tokens = run.given(section.tokens) or run.require("tokens")
    tokenizer_folder = run.given(section.tokenizer) or run.require("tokenizer")
    start_from = run.given(section.start_from)
    inputs = {"tokens": tokens, "tokenizer": tokenizer_folder} | ({"start_from": start_from} if start_from else {})
    with run.begin("base", recipe, **inputs) as making:
        if making.finished:
            return
        tokenizer = load_tokenizer(tokenizer_folder)
        set_seed(recipe.seed)
        model = new_model(recipe.model, tokenizer, section.context, start_from)
        say(describe(model))
        context = section.context or model.config.max_position_embeddings
        flops = flops_per_token(model, context)
        train = TokenWindows(tokens, "train", context, recipe.seed)
        validation = TokenWindows(tokens, "validation", context)
        arguments = training_arguments(
            TrainingArguments,
            section.training,
            making.path,
            recipe.seed,
            "pretrain",
            **batch(section.tokens_per_step, context, section.training, "pretrain"),
            report_to=reporters(section.training.get("report_to")),
            eval_strategy="steps",
            train_sampling_strategy="sequential" if train.in_stages else "random",
            weight_decay=0.1,
            adam_beta2=0.95,
            torch_compile=device_type() == "cuda" and not launched_layout().splits_layers,
        )
        windows = section.tokens_per_step // context
        trainer = trainer_class()(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=validation.limited(section.evaluation_tokens),
            processing_class=tokenizer,
            data_collator=collator(launched_layout()),
            z_loss=section.z_loss,
        )
        watch(
            trainer,
            flops,
            validation.bytes_per_token,
            samples=section.samples,
            price_per_hour=recipe.price_per_hour,
            stage_at=(lambda step: train.stage_of(step * windows - 1) + 1) if train.in_stages else None,
        )
        headline = "{eval_bits_per_byte:.3f} bits per byte, perplexity {eval_perplexity:.1f}"
        finish(trainer, making, run, headline, spikes=section.spikes)


if __name__ == "__main__":
    main()
