"""Fine-tune the base model on conversations, supervising only the assistant's words; makes runs/<name>/sft.

    accelerate launch -m hf_llm.sft recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.sft recipes/gpt125m.yaml
    python -m hf_llm.sft recipes/gpt125m.yaml --preview

With a `lora` section only adapters are trained; they are merged into the saved model, and also kept in its adapter/.
`--preview` trains nothing: it shows some rows with their supervised tokens, and counts the rows kept and dropped.
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import Settings
from hf_llm.pipeline.run import BaseRecipe, StageOutput, read_run
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.preflight.before_work import check_before_work

if TYPE_CHECKING:
    import trl
    from transformers import Trainer

    from hf_llm.posttraining.rows.sft_dataset import SftRows


PREVIEW = "--preview"


@dataclass
class SftSection(PostTrainingSection):
    """The `sft` section."""

    training: Settings["trl.SFTConfig"] = field(default_factory=Settings)
    """TRL's settings of the training, by their own names."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.training.pop("assistant_only_loss", True):
            raise ValueError("training.assistant_only_loss is false; questions are never supervised, leave the key out")
        if self.training.get("chat_template_path"):
            raise ValueError("training.chat_template_path: the tokenizer section has the chat template; leave it out")


@dataclass
class Recipe(BaseRecipe):
    """What this stage reads of the recipe."""

    sft: SftSection
    """Supervised fine-tuning on conversations."""


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if PREVIEW in argv:
        print_preview([argument for argument in argv if argument != PREVIEW])
        return

    run, recipe = read_run(Recipe, argv)
    check_before_work(run, "sft")
    section = recipe.sft

    from hf_llm.posttraining.eos_rate import collect_prompts, measure_eos_rate
    from hf_llm.posttraining.rows.sft_dataset import format_rows_table
    from hf_llm.posttraining.start_check import warn_of_no_effect
    from hf_llm.training.train_and_save import train_and_save

    with run.open_stage("sft", recipe, {"base": section.model}) as output:
        if output.is_complete:
            return
        trainer, rows = build_stage_trainer(recipe, output)
        print_main(format_rows_table(rows.report))

        def measure(metrics: dict[str, Any]) -> dict[str, Any]:
            truncated = rows.report["truncated"] / max(rows.report["kept"], 1)
            eos_rate = measure_eos_rate(trainer, rows.held_out, output.path, truncated)
            return eos_rate | warn_of_no_effect(trainer, metrics)

        headline = "loss {eval_loss:.3f} on held-out answers, token accuracy {eval_mean_token_accuracy:.0%}"
        if collect_prompts(rows.held_out):
            headline += ", EOS rate {stop_rate:.0%}"
        train_and_save(
            trainer,
            output,
            run,
            headline,
            measure,
            licenses=section.licenses,
            rows=rows.report,
        )


def build_stage_trainer(recipe: Recipe, output: StageOutput) -> "tuple[Trainer, SftRows]":
    """Build the trainer of this stage for the model at `output.start`; also return its rows and their report."""
    from trl import SFTConfig

    from hf_llm.monitoring.attach import attach_callbacks
    from hf_llm.posttraining.build_trainer import build_trainer
    from hf_llm.posttraining.packing_check import check_packing
    from hf_llm.posttraining.rows.sft_dataset import build_sft_rows
    from hf_llm.posttraining.sft_trainer import SupervisedSFTTrainer
    from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length

    section = recipe.sft
    tokenizer = load_chat_tokenizer(output.start, output.path.parent, supervised=True)
    max_length = max_row_length(section, output.start, "sft")
    rows = build_sft_rows(section, recipe.seed, tokenizer, max_length, output.path.with_name("corpus"))

    trainer = build_trainer(SupervisedSFTTrainer, SFTConfig, section, output, recipe.seed, [rows.train, rows.held_out])
    check_packing(trainer)
    attach_callbacks(trainer, price_per_hour=recipe.price_per_hour)
    return trainer, rows


def print_preview(argv: list[str]) -> None:
    """Print some rows of the recipe's data, and a table of the counts of all rows; this needs only a tokenizer."""
    run, recipe = read_run(Recipe, argv)
    section = recipe.sft
    start = run.resolve_source(section.model)
    if start is None:
        base = run.folder("base")
        start = base if read_manifest(base) else run.ensure_stage("tokenizer")

    from hf_llm.posttraining.rows.preview import render_preview
    from hf_llm.posttraining.rows.sft_dataset import build_sft_rows, format_rows_table
    from hf_llm.posttraining.starting_model import load_chat_tokenizer, max_row_length

    tokenizer = load_chat_tokenizer(start, run.root, supervised=True)
    max_length = max_row_length(section, start, "sft")
    rows = build_sft_rows(section, recipe.seed, tokenizer, max_length, run.folder("corpus"))
    print_main(render_preview(rows.train, tokenizer, colour=sys.stdout.isatty()))
    if max_length:
        print_main(f"\nat most {max_length} tokens a row")
    else:
        print_main("\nno base model yet, so no row is truncated to its context")
    print_main(format_rows_table(rows.report))


if __name__ == "__main__":
    main()
