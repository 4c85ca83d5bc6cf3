"""Fine-tune the base model on conversations, learning only the assistant's words; makes runs/<name>/sft.

    accelerate launch -m hf_llm.sft recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.sft recipes/gpt125m.yaml
    python -m hf_llm.sft recipes/gpt125m.yaml --preview

With a `lora` section only adapters are trained; they are merged into the saved model and kept beside it in adapter/.
`--preview` trains nothing: it shows some rows, what is supervised in them, and what became of every row.
"""

import sys
from dataclasses import dataclass, field

from trl import SFTConfig

from hf_llm.core.console import print_main
from hf_llm.core.errors import command
from hf_llm.core.manifest import read_manifest
from hf_llm.core.recipe import Settings
from hf_llm.monitoring.attach import watch
from hf_llm.pipeline.run import read_run
from hf_llm.posttraining.build_trainer import Tuning, chat_tokenizer, longest_row, tuning_trainer
from hf_llm.posttraining.eos_rate import held_out_prompts, stop_rate
from hf_llm.posttraining.packing_check import check_packing
from hf_llm.posttraining.preview import preview
from hf_llm.posttraining.sft_dataset import supervised_rows, table
from hf_llm.posttraining.sft_trainer import ChatTrainer
from hf_llm.training.train_and_save import finish

PREVIEW = "--preview"


@dataclass
class Finetuning(Tuning):
    """The `sft` section."""

    training: Settings[SFTConfig] = field(default_factory=Settings)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.training.pop("assistant_only_loss", True):
            raise ValueError("training.assistant_only_loss is false; questions are never learnt, leave the key out")
        if self.training.get("chat_template_path"):
            raise ValueError("training.chat_template_path: the tokenizer section has the chat template; leave it out")


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    sft: Finetuning
    seed: int = 42
    price_per_hour: float | None = field(default=None, metadata={"help": "of one device; the log tells the cost"})


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if PREVIEW in argv:
        return show([argument for argument in argv if argument != PREVIEW])
    run, recipe = read_run(Recipe, argv)
    section = recipe.sft
    with run.open_stage("sft", recipe, {"base": section.model}) as making:
        if making.is_complete:
            return
        start = making.sources["base"]
        tokenizer = chat_tokenizer(start, run.root)
        max_length = longest_row(section, start, "sft")
        rows = supervised_rows(section, recipe.seed, tokenizer, max_length)
        print_main(table(rows.report))
        sides = [rows.train, rows.held_out]
        trainer = tuning_trainer(ChatTrainer, SFTConfig, section, making, recipe.seed, start, sides)
        check_packing(trainer)
        watch(trainer, price_per_hour=recipe.price_per_hour)
        headline = "loss {eval_loss:.3f} on held-out answers, {eval_mean_token_accuracy:.0%} of their tokens right"
        if held_out_prompts(rows.held_out):
            headline += ", {stop_rate:.0%} of answers end by themselves"
        finish(
            trainer,
            making,
            run,
            headline,
            measure=lambda: stop_rate(trainer, rows.held_out, making.path),
            licenses=section.licenses,
            rows=rows.report,
        )


def show(argv: list[str]) -> None:
    """Print some rows of the recipe's data, and the table of all; needs no more than the run's tokenizer."""
    run, recipe = read_run(Recipe, argv)
    section = recipe.sft
    start = run.resolve_source(section.model)
    if start is None:
        start = run.folder("base") if read_manifest(run.folder("base")) else run.ensure_stage("tokenizer")
    tokenizer = chat_tokenizer(start, run.root)
    max_length = longest_row(section, start, "sft")
    rows = supervised_rows(section, recipe.seed, tokenizer, max_length)
    print_main(preview(rows.train, tokenizer, colour=sys.stdout.isatty()))
    print_main(
        f"\nat most {max_length} tokens a row" if max_length else "\nno base model yet, so no row is cut to its context"
    )
    print_main(table(rows.report))


if __name__ == "__main__":
    main()
