"""Pretrain a model from scratch on the token shards of runs/<name>/tokens; makes runs/<name>/base.

    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml
    accelerate launch -m hf_llm.pretrain recipes/gpt125m.yaml --pretrain.training.max_steps=20

The same command resumes an interrupted run.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.recipe import Settings, to_plain
from hf_llm.monitoring.callbacks.samples_section import SamplesSection
from hf_llm.monitoring.callbacks.tasks_section import TasksSection
from hf_llm.pipeline.model_types import CAUSAL, name_config_class
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.preflight.before_work import check_before_work
from hf_llm.tokenization.compare_tokenizers import check_shards_tokenizer, check_start_tokenizer
from hf_llm.training.fault_tolerance.loss_spikes import SpikeSection
from hf_llm.training.sections import Objective, Rampup

if TYPE_CHECKING:
    import transformers
    from transformers import PreTrainedTokenizerBase, Trainer


@dataclass
class PretrainSection:
    """The `pretrain` section."""

    tokens_per_step: int
    """Tokens of one optimizer step; the program splits them into micro-batch x accumulation x processes."""
    training: Settings["transformers.TrainingArguments"]
    """transformers' settings of the training, by their own names."""
    context: int | None = None
    """Tokens of one training sequence; left out, the model's context."""
    context_warmup: Rampup | None = None
    """Sequence-length ramp-up: shorter sequences in the first steps."""
    batch_warmup: Rampup | None = None
    """Batch-size ramp-up: smaller updates in the first steps."""
    evaluation_tokens: int = 1 << 20
    """Tokens of the validation split that one evaluation takes."""
    z_loss: float = 0.0
    """Weight of the z-loss; 1e-4 keeps logits from drifting. It is not in the logged loss."""
    samples: SamplesSection = field(default_factory=SamplesSection)
    """Texts generated during training, to be read."""
    evaluate_tasks: TasksSection = field(default_factory=TasksSection)
    """Benchmarks scored during training, on a fixed number of documents."""
    spikes: SpikeSection = field(default_factory=SpikeSection)
    """Which updates are dropped as outliers."""
    objective: str | Objective | None = None
    """causal, masked or span_corruption; left out, that of the model_type."""
    start_from: str | None = None
    """A model to continue training from, for example at a longer context."""
    keep_layers: list[int] | None = None
    """Layer pruning: the layers of start_from, counted from 0, that a smaller model is made of."""
    tokens: str | None = None
    """A tokens folder of another run, with its tokenizer, instead of this run's."""
    tokenizer: str | None = None
    """A tokenizer folder of another run, instead of this run's. It has to be that of `tokens`."""
    extend: bool = False
    """Continue a training for another number of steps, even where its learning rate was planned for the old one."""

    def __post_init__(self) -> None:
        if self.keep_layers is not None and self.start_from is None:
            raise ValueError("keep_layers takes layers of another model; name it in start_from")

    def inputs(self) -> dict[str, str | None]:
        """Return the inputs of the base model, as `Run.open_stage` takes them."""
        inputs = {"tokens": self.tokens, "tokenizer": self.tokenizer}
        if self.start_from:
            inputs["start_from"] = self.start_from
        return inputs


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    pretrain: PretrainSection
    """Pretraining from scratch on the token shards."""
    model: Settings[name_config_class] = field(default_factory=Settings)
    """The architecture: settings of the model class that `model_type` names, hf_llm's own if left out."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "base")

    from hf_llm.training.objectives import resolve_objective
    from hf_llm.training.train_and_save import train_and_save

    objective = resolve_objective(run.tree)
    with run.open_stage("base", recipe, recipe.pretrain.inputs()) as output:
        if output.is_complete:
            return
        trainer = build_pretraining_trainer(recipe, objective, output)
        train_and_save(
            trainer, output, run, objective.headline, spikes=recipe.pretrain.spikes, objective=to_plain(objective)
        )


def check_tokenizers(tokenizer: "PreTrainedTokenizerBase", tokens: Path | str, start_from: Path | str | None) -> None:
    """Raise UserError where the folder of tokens, or the model to start from, belongs to another tokenizer."""
    check_shards_tokenizer(tokens, tokenizer, "pretrain.tokens")
    if start_from:
        check_start_tokenizer(start_from, tokenizer, "pretrain.start_from")


def build_pretraining_trainer(recipe: Recipe, objective: Objective, output: StageOutput) -> "Trainer":
    """Build model, data, arguments and trainer, and attach the callbacks."""
    from transformers import TrainingArguments, set_seed

    from hf_llm.data.tokens.byte_lengths import token_byte_lengths
    from hf_llm.data.tokens.token_dataset import TokenWindows
    from hf_llm.hardware.runtime import device_type
    from hf_llm.inference.generate import suppress_unused_ids
    from hf_llm.model.load import build_model, load_tokenizer, resolve_context
    from hf_llm.model.summary import flops_per_token, summarize_model
    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.monitoring.callbacks.integrations import choose_reporters
    from hf_llm.parallel.layout import read_layout, select_collator
    from hf_llm.training.arguments import (
        build_training_arguments,
        choose_evaluation_interval,
        describe_short_steps,
        list_micro_batches,
        split_batch,
    )
    from hf_llm.training.batch_rampup import add_rampup_callbacks, context_lengths, first_step_updates
    from hf_llm.training.objectives import accuracy_arguments, add_epoch_callback, corrupt_windows
    from hf_llm.training.schedules import add_curriculum_decay
    from hf_llm.training.step_choice import choose_step
    from hf_llm.training.tensor_pipeline_trainer import trainer_class

    section = recipe.pretrain

    # The model
    tokenizer = load_tokenizer(output.sources["tokenizer"])
    check_tokenizers(tokenizer, output.sources["tokens"], output.sources.get("start_from"))
    set_seed(recipe.seed)
    model = build_model(recipe.model, tokenizer, section.context, output.sources.get("start_from"), section.keep_layers)
    suppress_unused_ids(model, tokenizer)
    print_main(summarize_model(model))
    context = resolve_context(model.config, section.context)

    # The data
    tokens = Path(output.sources["tokens"])
    train = TokenWindows(tokens, "train", context, recipe.seed)
    validation = TokenWindows(tokens, "validation", context).limit_tokens(section.evaluation_tokens)
    if objective.kind == CAUSAL:
        validation.measure_bytes(token_byte_lengths(tokenizer))
    corruption = objective.corruption(tokenizer, context)

    # The arguments
    sequences_per_step = section.tokens_per_step // context
    updates_per_step = first_step_updates(section.tokens_per_step, section.batch_warmup)
    batch = (section.tokens_per_step, context, section.training, "pretrain", updates_per_step)
    split = split_batch(*batch)
    choice = choose_step(
        model,
        section.training,
        output.path,
        context,
        split["per_device_train_batch_size"],
        list_micro_batches(split, section.training, updates_per_step),
    )
    arguments = build_training_arguments(
        TrainingArguments,
        add_curriculum_decay(section.training, train, sequences_per_step),
        output.path,
        recipe.seed,
        "pretrain",
        choice.bf16,
        **split_batch(*batch, choice.micro_batch),
        report_to=choose_reporters(section.training.get("report_to")),
        eval_strategy="steps",
        train_sampling_strategy="sequential" if train.has_stages else "random",
        weight_decay=0.1,
        adam_beta2=0.95,
        torch_compile=device_type() == "cuda" and not read_layout().splits_layers,
    )
    choose_evaluation_interval(arguments, section.training, len(validation) * context, section.tokens_per_step)
    short_steps = describe_short_steps(len(train), context, section.tokens_per_step, arguments.max_steps)
    if short_steps:
        print_main(short_steps)

    # Before the trainer is built: a pipeline takes the model apart.
    flops_by_length = {}
    for length in context_lengths(context, section.context_warmup):
        flops_by_length[length] = flops_per_token(model, length)

    # The trainer
    trainer = trainer_class()(
        model=model,
        args=arguments,
        train_dataset=corrupt_windows(train, corruption, recipe.seed),
        eval_dataset=corrupt_windows(validation, corruption, recipe.seed),
        processing_class=tokenizer,
        data_collator=select_collator(read_layout()),
        z_loss=section.z_loss,
        **accuracy_arguments(objective),
    )

    # The callbacks
    def curriculum_stage(step: int) -> int:
        """Return the stage, counted from 1, that the last sequence of `step` belongs to."""
        return train.find_stage(step * sequences_per_step - 1) + 1

    add_epoch_callback(trainer)
    add_rampup_callbacks(trainer, context, section.tokens_per_step, section.context_warmup, section.batch_warmup)
    attach_callbacks(
        trainer,
        flops_by_length if section.context_warmup else flops_by_length[context],
        validation.bytes_per_token,
        likelihood=objective.kind == CAUSAL,
        samples=section.samples,
        tasks=section.evaluate_tasks,
        price_per_hour=recipe.price_per_hour,
        stage_at=curriculum_stage if train.has_stages else None,
    )
    return trainer


if __name__ == "__main__":
    main()
