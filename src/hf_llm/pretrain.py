"""Pretrain a model from scratch on the token shards of runs/<name>/tokens; makes runs/<name>/base.

    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml
    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml --pretrain.training.max_steps=20

The same command goes on where an interrupted run stopped.
"""

from dataclasses import dataclass, field

from transformers import TrainingArguments, set_seed

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings, plain
from hf_llm.data.tokens.token_dataset import TokenWindows
from hf_llm.hardware.runtime import device_type
from hf_llm.model.load import CAUSAL, config_class, context_of, load_tokenizer, new_model
from hf_llm.model.summary import describe, flops_per_token
from hf_llm.monitoring.attach import watch
from hf_llm.monitoring.callbacks.integrations import reporters
from hf_llm.monitoring.callbacks.samples import Samples
from hf_llm.parallel.layout import collator, launched_layout
from hf_llm.pipeline.run import read_run
from hf_llm.training.arguments import batch, training_arguments
from hf_llm.training.batch_rampup import Warmup, lengths_of, updates_of, warm_up
from hf_llm.training.fault_tolerance.loss_spikes import Spikes
from hf_llm.training.objectives import Objective, corrupted, measures, objective_in, tell_epoch
from hf_llm.training.schedules import with_decay
from hf_llm.training.tensor_pipeline_trainer import trainer_class
from hf_llm.training.train_and_save import finish


@dataclass
class Pretraining:
    """The `pretrain` section."""

    tokens_per_step: int = field(metadata={"help": "split into micro-batch x accumulation x processes by the program"})
    training: Settings[TrainingArguments]
    context: int | None = field(default=None, metadata={"help": "tokens of a window; the model's context if left out"})
    context_warmup: Warmup | None = field(default=None, metadata={"help": "shorter sequences in the first steps"})
    batch_warmup: Warmup | None = field(default=None, metadata={"help": "smaller updates in the first steps"})
    evaluation_tokens: int = field(default=1 << 20, metadata={"help": "tokens of the validation split to evaluate on"})
    z_loss: float = field(default=0.0, metadata={"help": "1e-4 keeps logits from drifting; not in the logged loss"})
    samples: Samples = field(default_factory=Samples)
    spikes: Spikes = field(default_factory=Spikes)
    objective: str | Objective | None = field(
        default=None, metadata={"help": "causal, masked or span_corruption; the model_type's own if left out"}
    )
    start_from: str | None = field(default=None, metadata={"help": "a model to go on with, a longer context for one"})
    keep_layers: list[int] | None = field(
        default=None, metadata={"help": "layers of start_from that a smaller model is made of, from 0"}
    )
    tokens: str | None = field(default=None, metadata={"help": "a tokens folder of another run"})
    tokenizer: str | None = field(default=None, metadata={"help": "a tokenizer folder of another run"})

    def __post_init__(self) -> None:
        if self.keep_layers is not None and self.start_from is None:
            raise ValueError("keep_layers takes layers of another model; name it in start_from")


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
    run, recipe = read_run(Recipe, argv)
    section, objective = recipe.pretrain, objective_in(run.tree)
    inputs = {"tokens": section.tokens, "tokenizer": section.tokenizer}
    if section.start_from:
        inputs["start_from"] = section.start_from
    with run.open_stage("base", recipe, inputs) as making:
        if making.is_complete:
            return
        tokens, tokenizer_folder = making.sources["tokens"], making.sources["tokenizer"]
        start_from = making.sources.get("start_from")
        tokenizer = load_tokenizer(tokenizer_folder)
        set_seed(recipe.seed)
        model = new_model(recipe.model, tokenizer, section.context, start_from, section.keep_layers)
        print_main(describe(model))
        context = context_of(model.config, section.context)
        flops = {length: flops_per_token(model, length) for length in lengths_of(context, section.context_warmup)}
        windows = section.tokens_per_step // context
        updates = updates_of(section.tokens_per_step, section.batch_warmup)
        corruption = objective.corruption(tokenizer, context)
        train = TokenWindows(tokens, "train", context, recipe.seed)
        validation = TokenWindows(tokens, "validation", context)
        arguments = training_arguments(
            TrainingArguments,
            with_decay(section.training, train, windows),
            making.path,
            recipe.seed,
            "pretrain",
            **batch(section.tokens_per_step, context, section.training, "pretrain", updates),
            report_to=reporters(section.training.get("report_to")),
            eval_strategy="steps",
            prediction_loss_only=objective.kind == CAUSAL,
            train_sampling_strategy="sequential" if train.in_stages else "random",
            weight_decay=0.1,
            adam_beta2=0.95,
            torch_compile=device_type() == "cuda" and not launched_layout().splits_layers,
        )
        trainer = trainer_class()(
            model=model,
            args=arguments,
            train_dataset=corrupted(train, corruption, recipe.seed),
            eval_dataset=corrupted(validation.limited(section.evaluation_tokens), corruption, recipe.seed),
            processing_class=tokenizer,
            data_collator=collator(launched_layout()),
            z_loss=section.z_loss,
            **measures(objective),
        )
        tell_epoch(trainer)
        warm_up(trainer, context, section.tokens_per_step, section.context_warmup, section.batch_warmup)
        watch(
            trainer,
            flops if section.context_warmup else flops[context],
            validation.bytes_per_token,
            likelihood=objective.kind == CAUSAL,
            samples=section.samples,
            price_per_hour=recipe.price_per_hour,
            stage_at=(lambda step: train.stage_of(step * windows - 1) + 1) if train.in_stages else None,
        )
        finish(trainer, making, run, objective.headline, spikes=section.spikes, objective=plain(objective))


if __name__ == "__main__":
    main()
