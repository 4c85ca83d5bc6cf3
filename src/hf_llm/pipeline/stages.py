"""Describe every stage of a run by one record; all other tables of stages in this package are derived from `STAGES`.

A stage is a module with a command that makes one folder, `runs/<name>/<folder>`. To add one, see docs/layout.md.
"""

from dataclasses import dataclass
from typing import Any, Literal

from hf_llm.pipeline.sizing import SIZING_KEYS

Kind = Literal["data", "language_model", "reward_model", "summary"]

MIX_KEYS = ("corpus.shares", "corpus.max_epochs", "corpus.max_tokens", "corpus.curriculum")


@dataclass(frozen=True)
class Stage:
    """What the rest of the package needs to know of one stage."""

    folder: str
    """The folder it makes, below `runs/<name>/`."""
    module: str
    """The module that is run: `python -m <module> recipe.yaml`."""
    title: str
    """Its name on pages and in model cards."""
    kind: Kind
    """What its folder holds."""
    sections: tuple[str, ...] = ()
    """The recipe sections that determine what it makes, or single keys of one, as `section.key`."""
    reads: tuple[str, ...] = ()
    """The folders of a run that it may read."""
    ignores: tuple[str, ...] = ()
    """Keys of its sections that do not change what it makes."""
    restates: bool = False
    """Whether it only shows what other folders and the recipe hold, so that it is rewritten in place."""
    keeps: tuple[str, ...] = ()
    """What stays in its folder when it is made again: files or folders at its top, which are no part of its result."""
    is_optional: bool = False
    """Whether it runs only if the recipe has its section."""
    is_alignment: bool = False
    """Whether it trains a chat model on preferences or rewards."""
    evaluated_on: str = ""
    """What its training evaluates the model on, in the words of pages and cards; empty if it trains none."""
    texts_per_row: int | None = None
    """How many texts a row of training data holds; None if it trains on no rows, or samples the completions itself."""
    samples_completions: bool = False
    """Whether the model in training generates what it is trained on."""
    scores_reference: bool = False
    """Whether a reference model also scores every row, besides the model in training."""

    @property
    def makes_model(self) -> bool:
        """Whether its folder is a model that `from_pretrained` opens."""
        return self.kind in ("language_model", "reward_model")

    @property
    def is_summary(self) -> bool:
        """Whether it is made again, at little cost, as soon as something that it is made from has changed."""
        return self.kind == "summary"

    @property
    def section(self) -> str:
        """The recipe section that says how it trains: that of its own name, but `pretrain` for the base model."""
        return "pretrain" if self.folder == "base" else self.folder


def _data_stage(
    folder: str,
    module: str,
    title: str,
    sections: tuple[str, ...],
    reads: tuple[str, ...] = (),
    ignores: tuple[str, ...] = (),
) -> Stage:
    return Stage(folder, module, title, "data", sections, reads, ignores)


def _alignment_stage(
    folder: str,
    title: str,
    reads: tuple[str, ...],
    evaluated_on: str,
    texts_per_row: int | None = None,
    samples_completions: bool = False,
    scores_reference: bool = False,
) -> Stage:
    return Stage(
        folder,
        f"hf_llm.{folder}",
        title,
        "language_model",
        (folder, "seed"),
        reads,
        is_optional=True,
        is_alignment=True,
        evaluated_on=evaluated_on,
        texts_per_row=texts_per_row,
        samples_completions=samples_completions,
        scores_reference=scores_reference,
    )


_DATA_AND_TRAINING_STAGES = [
    _data_stage(
        "corpus", "hf_llm.prepare_data", "Corpus", ("corpus",),
        ignores=(*MIX_KEYS, "corpus.executor", "corpus.cluster"),
    ),
    _data_stage("tokenizer", "hf_llm.train_tokenizer", "Tokenizer", ("tokenizer", "corpus.shares"), reads=("corpus",)),
    _data_stage("tokens", "hf_llm.tokenize_corpus", "Token shards", MIX_KEYS, reads=("corpus", "tokenizer")),
    Stage(
        "base", "hf_llm.pretrain", "Pretraining", "language_model",
        sections=("model", "pretrain", "seed"), reads=("tokens", "tokenizer"), evaluated_on="the validation text",
    ),
    Stage(
        "sft", "hf_llm.sft", "Supervised fine-tuning", "language_model",
        sections=("sft", "seed"), reads=("base",), is_optional=True, evaluated_on="held-out answers", texts_per_row=1,
    ),
    Stage(
        "reward", "hf_llm.reward", "Reward model", "reward_model",
        sections=("reward", "seed"), reads=("base", "sft"), is_optional=True, evaluated_on="held-out pairs",
        texts_per_row=2,
    ),
    _alignment_stage(
        "dpo", "Direct preference optimisation", ("base", "sft"), "held-out pairs",
        texts_per_row=2, scores_reference=True,
    ),
    _alignment_stage(
        "kto", "Kahneman-Tversky optimisation", ("base", "sft"), "held-out answers",
        texts_per_row=1, scores_reference=True,
    ),
    _alignment_stage(
        "grpo", "Group-relative policy optimisation", ("base", "sft", "reward"), "held-out prompts",
        samples_completions=True,
    ),
    _alignment_stage(
        "rloo", "REINFORCE leave-one-out", ("base", "sft", "reward"), "held-out prompts", samples_completions=True,
    ),
    _alignment_stage(
        "ppo", "Proximal policy optimisation", ("base", "sft", "reward"), "held-out prompts", samples_completions=True,
    ),
]  # fmt: skip

LANGUAGE_MODELS = tuple(stage.folder for stage in _DATA_AND_TRAINING_STAGES if stage.kind == "language_model")

_SUMMARY_STAGES = [
    Stage("evaluation", "hf_llm.evaluate", "Evaluation", "summary", ("evaluate",), reads=LANGUAGE_MODELS,
          ignores=("evaluate.gates",), keeps=("measured",)),
    Stage("report", "hf_llm.report", "Report", "summary", (), reads=("corpus", "base", "evaluation"), restates=True),
]  # fmt: skip

# Every stage by its folder, in running order.
STAGES = {stage.folder: stage for stage in (*_DATA_AND_TRAINING_STAGES, *_SUMMARY_STAGES)}

DATA = tuple(stage.folder for stage in STAGES.values() if stage.kind == "data")
MODELS = tuple(stage.folder for stage in STAGES.values() if stage.makes_model)
ALIGNED_MODELS = tuple(stage.folder for stage in STAGES.values() if stage.is_alignment)
OPTIONAL = tuple(stage.folder for stage in STAGES.values() if stage.is_optional)


def is_requested(tree: dict[str, Any], folder: str) -> bool:
    """Return whether a recipe's tree asks for a folder.

    Where `pretrain` names tokens or a tokenizer of another run, this run makes none of what leads to them. A recipe
    that only evaluates models that it names makes no model.
    """
    if folder in (*DATA, "base") and only_evaluates(tree):
        return False
    pretrain = tree.get("pretrain")
    named = pretrain if isinstance(pretrain, dict) else {}
    if folder in DATA and named.get("tokens"):
        return False
    if folder == "tokenizer" and named.get("tokenizer"):
        return False
    return folder not in OPTIONAL or folder in tree


def only_evaluates(tree: dict[str, Any]) -> bool:
    """Return whether a recipe has no section of data and training, and names the models that it evaluates."""
    evaluation = tree.get("evaluate")
    names_models = isinstance(evaluation, dict) and evaluation.get("models")
    sections = {stage.section for stage in STAGES.values() if stage.kind != "summary"} | set(SIZING_KEYS)
    return bool(names_models) and not sections & tree.keys()


# Every top-level key that a recipe may have, in running order.
_STAGE_SECTIONS = dict.fromkeys(section.split(".")[0] for stage in STAGES.values() for section in stage.sections)
RECIPE_KEYS = tuple(dict.fromkeys(["name", "seed", *SIZING_KEYS, "machine", "price_per_hour", *_STAGE_SECTIONS]))
