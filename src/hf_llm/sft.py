"""Fine-tune the base model on conversations, learning only the assistant's words; makes runs/<name>/sft.

    accelerate launch -m hf_llm.sft recipes/gpt125m.yaml
    accelerate launch --config_file accelerate_configs/zero2.yaml -m hf_llm.sft recipes/gpt125m.yaml

With a `lora` section only adapters are trained; they are merged into the saved model and kept beside it in adapter/.
"""

from dataclasses import dataclass, field

from trl import SFTConfig, SFTTrainer

from hf_llm.data.conversations import load_conversations
from hf_llm.errors import command
from hf_llm.lifecycle import Run
from hf_llm.monitoring.watch import watch
from hf_llm.recipe import Settings, load_recipe
from hf_llm.training.ending import finish
from hf_llm.training.tuning import Tuning, tuning_trainer


@dataclass
class Finetuning(Tuning):
    """The `sft` section."""

    training: Settings[SFTConfig] = field(default_factory=Settings)


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
    with run.begin("sft", recipe, base=start) as making:
        if making.finished:
            return
        *rows, counts = load_conversations(section.data, section.evaluation_share, recipe.seed, section.allow_drop)
        trainer = tuning_trainer(
            SFTTrainer, SFTConfig, section, making, recipe.seed, start, rows, assistant_only_loss=True
        )
        watch(trainer)
        headline = "loss {eval_loss:.3f} on held-out answers, {eval_mean_token_accuracy:.0%} of their tokens right"
        finish(trainer, making, run, headline, licenses=section.licenses, rows=counts)


if __name__ == "__main__":
    main()
