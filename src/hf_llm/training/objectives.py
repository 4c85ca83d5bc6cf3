"""`pretrain.objective`: what a model learns from raw text, which follows from its `model_type` where nothing is said.

`causal` predicts each token from those before it, `masked` the tokens hidden in a text (BERT, ModernBERT, ALBERT ...),
`span_corruption` the gaps of a text, which a decoder writes (T5 ...). docs/objectives.md has the table.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import AutoConfig, EvalPrediction, PreTrainedTokenizerBase, Trainer, TrainerCallback

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.corruption import IGNORED, CorruptedSpans, CorruptedWindows, MaskedTokens
from hf_llm.model.load import CAUSAL, MASKED, SPAN_CORRUPTION, check_exists, one_line, usual_objective
from hf_llm.parallel.layout import launched_layout
from hf_llm.tokenization.sentinel_tokens import gap_tokens, mask_of, sentinels_of

# The papers' own: BERT (1810.04805), ModernBERT (2412.13663), T5 (1910.10683).
USUAL_SHARE = {MASKED: 0.15, SPAN_CORRUPTION: 0.15}
MODERNBERT_SHARE = 0.3
MEAN_SPAN = 3.0
ACCURACY = {MASKED: "masked_accuracy", SPAN_CORRUPTION: "target_accuracy"}
HEADLINES = {
    CAUSAL: "{eval_bits_per_byte:.3f} bits per byte, perplexity {eval_perplexity:.1f}",
    MASKED: "{eval_masked_accuracy:.1%} of the masked tokens right, loss {eval_loss:.3f}",
    SPAN_CORRUPTION: "{eval_target_accuracy:.1%} of the gaps' tokens right, loss {eval_loss:.3f}",
}


@dataclass
class Objective:
    """The `pretrain.objective` section; what is left out follows from the model."""

    kind: Literal["causal", "masked", "span_corruption"] | None = None
    share: float | None = field(default=None, metadata={"help": "of the tokens, that are hidden or taken out"})
    mean_span: float | None = field(default=None, metadata={"help": "tokens of a gap; of span_corruption"})

    def __post_init__(self) -> None:
        if self.share is not None and not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it lies between 0 and 1")
        if self.mean_span is not None and self.mean_span < 1:
            raise ValueError(f"mean_span is {self.mean_span}; a gap has one token at least")
        if self.kind == CAUSAL and self.share is not None:
            raise ValueError("`share` belongs to masked and span_corruption; a causal model predicts every token")
        if self.kind in (CAUSAL, MASKED) and self.mean_span is not None:
            raise ValueError("`mean_span` belongs to span_corruption; leave it out")

    @property
    def headline(self) -> str:
        """The manifest's line, a format string over the numbers of an evaluation."""
        return HEADLINES[self.kind]

    def corruption(self, tokenizer: PreTrainedTokenizerBase, context: int) -> MaskedTokens | CorruptedSpans | None:
        """What takes tokens out of windows of `context` tokens; None where the model predicts all of them.

        Raises UserError for a tokenizer that has no token to put in their place.
        """
        if self.kind == CAUSAL:
            return None
        if self.kind == MASKED:
            return MaskedTokens(mask_of(tokenizer), words_of(tokenizer), self.share)
        sentinels = np.array(sentinels_of(tokenizer), np.int64)
        found = CorruptedSpans(sentinels, tokenizer.eos_token_id, tokenizer.pad_token_id, self.share, self.mean_span)
        found.check(context)
        return found

    def tokens(self, context: int | None) -> list[str]:
        """The special tokens that a tokenizer needs for this, with windows of `context` tokens if that is known."""
        spans = round((context or 0) * (self.share or 0) / (self.mean_span or 1)) + 1
        return gap_tokens(mask=self.kind == MASKED, sentinels=spans if self.kind == SPAN_CORRUPTION else 0)


def objective_in(tree: dict[str, Any]) -> Objective:
    """What the recipe `tree` asks a model to learn, the papers' values filled in.

    Raises UserError where the model_type cannot learn it.
    """
    pretrain, section = tree.get("pretrain") or {}, model_section(tree)
    wanted, usual = _read(pretrain.get("objective")), usual_objective(section)
    name = section.get("model_type", "hf_llm")
    if wanted.kind not in (None, usual):
        remedy = "leave it out, or choose a model_type that can: "
        remedy += {MASKED: "bert, modernbert ...", SPAN_CORRUPTION: "t5 ...", CAUSAL: "hf_llm, llama, gpt2 ..."}[
            wanted.kind
        ]
        if usual == MASKED and wanted.kind == CAUSAL:
            remedy = f"{name} sees what stands after each token; write model.is_decoder: true as well where it can"
        raise UserError(f"pretrain.objective: {wanted.kind} is nothing a {name} can learn, it learns {usual}; {remedy}")
    try:
        return filled_in(wanted, usual, name)
    except ValueError as error:
        raise UserError(f"pretrain.objective: {error}") from None


def filled_in(objective: Objective, kind: str, model_type: str) -> Objective:
    """An objective of this `kind`, with the papers' values where it says nothing. Raises ValueError for settings that
    are another kind's."""
    found = replace(objective, kind=kind)
    if kind != CAUSAL and found.share is None:
        found = replace(found, share=MODERNBERT_SHARE if model_type == "modernbert" else USUAL_SHARE[kind])
    if kind == SPAN_CORRUPTION and found.mean_span is None:
        found = replace(found, mean_span=MEAN_SPAN)
    return found


def model_section(tree: dict[str, Any]) -> dict[str, Any]:
    """The `model` section; of a student that names no model_type, with its teacher's."""
    section, pretrain = tree.get("model") or {}, tree.get("pretrain") or {}
    teacher = pretrain.get("start_from")
    if "model_type" in section or pretrain.get("keep_layers") is None or teacher is None:
        return section
    check_exists(teacher)
    try:
        config = AutoConfig.from_pretrained(teacher, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(f"pretrain.start_from: {teacher}: no model to load: {one_line(error)}") from error
    return {"is_decoder": getattr(config, "is_decoder", False), **section, "model_type": config.model_type}


def _read(given: str | dict | Objective | None) -> Objective:
    if isinstance(given, Objective):
        return given
    settings = given if isinstance(given, dict) else {"kind": given}
    if settings.get("kind") not in (None, *HEADLINES):
        raise UserError(f"pretrain.objective: {settings['kind']!r} is unknown; one of {', '.join(HEADLINES)}")
    try:
        return Objective(**settings)
    except (TypeError, ValueError) as error:
        raise UserError(f"pretrain.objective: {error}") from None


def words_of(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """(vocabulary,) bool: which ids are no special tokens."""
    found = np.ones(len(tokenizer), bool)
    found[tokenizer.all_special_ids] = False
    return found


def corrupted(windows: Dataset, corruption: MaskedTokens | CorruptedSpans | None, seed: int) -> Dataset:
    """`windows` with tokens taken out as the objective has it; as they are without a `corruption`.

    Raises UserError where the launch cuts windows in pieces, each of which would lack what the other has.
    """
    layout = launched_layout()
    if corruption is not None and layout.context * layout.sequence > 1:
        raise UserError(
            "context and sequence parallelism are for causal models; launch with ddp, zero2, zero3 or fsdp2 of "
            "accelerate_configs/"
        )
    return windows if corruption is None else CorruptedWindows(windows, corruption, seed)


def measures(objective: Objective) -> dict[str, Any]:
    """What Trainer takes to measure, in an evaluation, the share of the tokens taken out that the model puts back."""
    if objective.kind == CAUSAL:
        return {}

    def accuracy(found: EvalPrediction) -> dict[str, float]:
        counted = found.label_ids != IGNORED
        return {ACCURACY[objective.kind]: float((found.predictions == found.label_ids)[counted].mean())}

    return {"compute_metrics": accuracy, "preprocess_logits_for_metrics": best_tokens}


def best_tokens(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    """(B, T) the likeliest token of each place, by logits (B, T, vocabulary), which would fill the memory if kept."""
    return (logits[0] if isinstance(logits, tuple) else logits).argmax(-1)


def tell_epoch(trainer: Trainer) -> None:
    """Make a trainer tell its corrupted windows the epoch, from which follows what is taken out of them."""
    if isinstance(trainer.train_dataset, CorruptedWindows):
        trainer.add_callback(NextEpoch(trainer.train_dataset))


class NextEpoch(TrainerCallback):
    """Tells the training data the epoch, from which follows what is taken out, also where a training goes on."""

    def __init__(self, windows: CorruptedWindows):
        self.windows = windows

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.windows.set_epoch(int(state.epoch or 0))
