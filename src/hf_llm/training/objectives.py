"""`pretrain.objective`: what a model is trained to predict from raw text; by default it follows from `model_type`.

`causal` predicts each token from those before it, `masked` the tokens hidden in a text (BERT, ModernBERT, ALBERT ...),
`span_corruption` the spans taken out of a text, which a decoder writes (T5 ...). docs/objectives.md has the table.
"""

from dataclasses import replace
from typing import Any

from torch.utils.data import Dataset
from transformers import AutoConfig, Trainer, TrainerCallback

from hf_llm.core.errors import UserError
from hf_llm.core.format import one_line
from hf_llm.data.tokens.corruption import CorruptedWindows, SpanCorruption, TokenMasking
from hf_llm.model.load import CAUSAL, MASKED, SPAN_CORRUPTION, default_objective
from hf_llm.parallel.layout import read_layout
from hf_llm.pipeline.find_model import check_model_path
from hf_llm.training.sections import HEADLINES, Objective

# The papers' own: BERT (1810.04805), ModernBERT (2412.13663), T5 (1910.10683).
DEFAULT_SHARE = {MASKED: 0.15, SPAN_CORRUPTION: 0.15}
MODERNBERT_SHARE = 0.3
MEAN_SPAN_TOKENS = 3.0

ACCURACY_KEYS = {MASKED: "masked_accuracy", SPAN_CORRUPTION: "target_accuracy"}
MODEL_TYPE_EXAMPLES = {CAUSAL: "hf_llm, llama, gpt2 ...", MASKED: "bert, modernbert ...", SPAN_CORRUPTION: "t5 ..."}


def resolve_objective(tree: dict[str, Any]) -> Objective:
    """Return the objective of a recipe `tree`, the papers' values filled in.

    Raises UserError where a model of its model_type cannot be trained on it.
    """
    section = model_section(tree)
    model_type = section.get("model_type", "hf_llm")
    pretrain = tree.get("pretrain") or {}
    objective = _parse_objective(pretrain.get("objective"))
    trainable_kind = default_objective(section)
    if objective.kind not in (None, trainable_kind):
        remedy = f"leave it out, or choose a model_type that can: {MODEL_TYPE_EXAMPLES[objective.kind]}"
        if trainable_kind == MASKED and objective.kind == CAUSAL:
            remedy = f"{model_type} sees the tokens after each token; also write model.is_decoder: true where it can"
        raise UserError(
            f"pretrain.objective: a {model_type} cannot be trained on {objective.kind}, only on {trainable_kind}; "
            f"{remedy}"
        )

    try:
        return fill_objective_defaults(objective, trainable_kind, model_type)
    except ValueError as error:
        raise UserError(f"pretrain.objective: {error}") from None


def fill_objective_defaults(objective: Objective, kind: str, model_type: str) -> Objective:
    """Return `objective` as one of this `kind`, with the papers' values for what it leaves open.

    Raises ValueError for settings that belong to another kind.
    """
    objective = replace(objective, kind=kind)
    if kind != CAUSAL and objective.share is None:
        share = MODERNBERT_SHARE if model_type == "modernbert" else DEFAULT_SHARE[kind]
        objective = replace(objective, share=share)
    if kind == SPAN_CORRUPTION and objective.mean_span is None:
        objective = replace(objective, mean_span=MEAN_SPAN_TOKENS)
    return objective


def model_section(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe's `model` section; for a layer-pruned model that names no model_type, with the larger one's."""
    section = tree.get("model") or {}
    pretrain = tree.get("pretrain") or {}
    larger_model = pretrain.get("start_from")
    if "model_type" in section or pretrain.get("keep_layers") is None or larger_model is None:
        return section

    check_model_path(larger_model)
    try:
        config = AutoConfig.from_pretrained(larger_model, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"pretrain.start_from: {larger_model}: cannot load the model: {one_line(error)}") from error
    return {"is_decoder": getattr(config, "is_decoder", False), **section, "model_type": config.model_type}


def _parse_objective(value: str | dict | Objective | None) -> Objective:
    """Build an Objective from a recipe's value: a kind alone, or a section. Raises UserError for what it is not."""
    if isinstance(value, Objective):
        return value

    settings = value if isinstance(value, dict) else {"kind": value}
    if settings.get("kind") not in (None, *HEADLINES):
        raise UserError(f"pretrain.objective: {settings['kind']!r} is unknown; one of {', '.join(HEADLINES)}")
    try:
        return Objective(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"pretrain.objective: {error}") from None


def corrupt_windows(windows: Dataset, corruption: TokenMasking | SpanCorruption | None, seed: int) -> Dataset:
    """Wrap `windows` so that `corruption` masks or removes tokens in each; without one return them unchanged.

    Raises UserError where the launch spreads a window over processes.
    """
    if corruption is None:
        return windows

    layout = read_layout()
    if layout.context * layout.sequence > 1:
        raise UserError(
            "context and sequence parallelism are for causal models; launch with ddp, zero2, zero3 or fsdp2 of "
            "accelerate_configs/"
        )
    return CorruptedWindows(windows, corruption, seed)


def accuracy_arguments(objective: Objective) -> dict[str, Any]:
    """Return PretrainingTrainer's argument for the token accuracy of an evaluation; none for a causal model.

    The accuracy is the share of the tokens taken out that the model predicts.
    """
    return {} if objective.kind == CAUSAL else {"accuracy_key": ACCURACY_KEYS[objective.kind]}


def add_epoch_callback(trainer: Trainer) -> None:
    """Add a callback that tells a trainer's corrupted windows the epoch, if it has corrupted windows."""
    if isinstance(trainer.train_dataset, CorruptedWindows):
        trainer.add_callback(EpochCallback(trainer.train_dataset))


class EpochCallback(TrainerCallback):
    """Set the epoch of corrupted windows, which determines the corrupted tokens; after a resume too."""

    def __init__(self, windows: CorruptedWindows):
        self.windows = windows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.windows.set_epoch(int(state.epoch or 0))
