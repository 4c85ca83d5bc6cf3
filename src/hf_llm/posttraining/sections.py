"""What the recipe sections of post-training have in common. Each stage adds its own `training`."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import ConversationSource
from hf_llm.inference.sampling_arguments import temperature_problem
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stage_inputs import reward_input
from hf_llm.posttraining.lora_settings import check_lora_settings

if TYPE_CHECKING:
    import peft


@dataclass
class PostTrainingSection:
    """The keys that SFT, the reward model, DPO and their kin share."""

    data: list[ConversationSource]
    """The rows to train on; several sources are mixed."""
    lora: Settings["peft.LoraConfig"] | None = None
    """Train LoRA adapters with these settings and merge them at the end; left out, all weights are trained."""
    evaluation_share: float = 0.05
    """Share of the questions whose rows are kept out of training, for evaluation: rounded, and at least one."""
    allow_drop: float = 0.01
    """The stage stops where more than this share of the rows cannot be used; those that are too long do not count."""
    too_long: Literal["drop", "truncate"] = "drop"
    """What to do with rows that do not fit the context: `drop` keeps whole answers only (a conversation loses its last
    exchanges, a row whose answer does not fit is dropped), `truncate` cuts them."""
    model: str | None = None
    """A model folder or Hub id to start from, instead of this run's."""
    quantize: Literal["4bit", "8bit"] | None = None
    """Hold the weights below the adapters in so many bits (QLoRA); needs a GPU and `lora`."""
    extend: bool = False
    """Continue a training for another number of steps, even where its learning rate was planned for the old one."""

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is empty; name at least one source")
        if not 0 < self.evaluation_share < 1:
            raise ValueError(f"evaluation_share is {self.evaluation_share}; hold out a share between 0 and 1")
        if not 0 <= self.allow_drop < 1:
            raise ValueError(f"allow_drop is {self.allow_drop}; it is a share, from 0 to below 1")
        if self.quantize and self.lora is None:
            raise ValueError(f"quantize: {self.quantize} weights cannot be trained themselves; add a lora section")
        if self.lora is not None:
            check_lora_settings(self.lora, self.has_reference, self.quantize)

    @property
    def has_reference(self) -> bool:
        """Whether the stage compares the model with the one it starts from."""
        return False

    @property
    def licenses(self) -> list[str]:
        """The licences of the section's own data."""
        return [source.license for source in self.data]


@dataclass
class RolloutSection(PostTrainingSection):
    """The additional keys of the stages that train a model on completions which it samples itself."""

    reward_model: str | None = None
    """A reward model's folder or Hub id; left out, this run's own, unless reward_functions are named."""
    reward_functions: list[str] = field(default_factory=list)
    """Python functions as `module:function`, called as TRL calls reward functions."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problem = temperature_problem(self.training.get("temperature", 1.0))
        if problem:
            raise ValueError(f"training.temperature: {problem}")

    @property
    def has_reference(self) -> bool:
        return self.training.get("beta") != 0  # GRPO and RLOO keep none where the KL has no weight

    def reward_input(self, run: Run) -> dict[str, str | None]:
        """Return the reward model as an input of the stage (`Run.open_stage`); empty where only functions score."""
        return reward_input(run.tree, self.reward_model, self.reward_functions)


def default_completion_length(section: RolloutSection, context: int) -> int:
    """Return the tokens a completion may have: `training.max_completion_length`, else 256 or half of the context."""
    return section.training.get("max_completion_length") or min(256, context // 2)
