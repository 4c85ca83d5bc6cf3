"""What the stages that tune a model on rows share: their section's keys, and the trainer made of them."""

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, load_from_disk
from peft import LoraConfig
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.core.recipe import Settings
from hf_llm.data.chat.loaders import ConversationSource
from hf_llm.inference.generate import stop_at_end_of_turn
from hf_llm.model.load import check_objective, load_model, load_tokenizer, one_line
from hf_llm.monitoring.callbacks.integrations import reporters
from hf_llm.pipeline.run import StageOutput
from hf_llm.posttraining.qlora import load_quantized
from hf_llm.tokenization.chat_encoding import special_texts
from hf_llm.tokenization.checks import check_same_template, check_tokenizer
from hf_llm.training.arguments import training_arguments
from hf_llm.training.train_and_save import ROWS


@dataclass
class Tuning:
    """The keys that the sections of SFT, DPO and their kin have in common; each adds `training`."""

    data: list[ConversationSource]
    lora: Settings[LoraConfig] | None = None
    evaluation_share: float = field(default=0.05, metadata={"help": "share of the rows kept out for evaluation"})
    allow_drop: float = field(default=0.01, metadata={"help": "share of unusable rows above which this stops"})
    model: str | None = field(default=None, metadata={"help": "a model folder or Hub id to start from instead"})
    quantize: Literal["4bit", "8bit"] | None = field(
        default=None, metadata={"help": "hold the weights below the adapters in so many bits (QLoRA); needs a GPU"}
    )

    def __post_init__(self) -> None:
        if not self.data:
            raise ValueError("data is empty; name at least one source")
        if not 0 < self.evaluation_share < 1:
            raise ValueError(f"evaluation_share is {self.evaluation_share}; hold out a share between 0 and 1")
        if not 0 <= self.allow_drop < 1:
            raise ValueError(f"allow_drop is {self.allow_drop}; it is a share, from 0 to below 1")

        if self.quantize and self.lora is None:
            raise ValueError(f"quantize: {self.quantize} weights cannot be trained themselves; add a lora section")

    @property
    def licenses(self) -> list[str]:
        """The licences of the section's own data."""
        return [source.license for source in self.data]


def shared(rows: Dataset, folder: Path) -> tuple[Dataset, str]:
    """The same rows on the disk, where every process and a resumed run find what TRL computes from them; and their
    digest."""
    digest = digest_of(rows.to_list())
    place = folder / digest
    if not place.exists():
        temporary = place.with_name(f"{place.name}.{os.getpid()}.tmp")
        rows.save_to_disk(temporary)
        temporary.rename(place)
    return load_from_disk(place), digest


def chat_tokenizer(start: Path | str, run: Path) -> PreTrainedTokenizerBase:
    """The tokenizer at `start`, fit for a chat model. Raises UserError where it is not, or where `start` is a folder of
    the run and its chat template has drifted from that of the run's own tokenizer."""
    tokenizer = load_tokenizer(start)
    check_tokenizer(tokenizer, chat=True)
    own = run / "tokenizer"
    if Path(start).parent == run and own.is_dir():
        check_same_template(tokenizer, load_tokenizer(own))
    return tokenizer


def context_length(start: Path | str) -> int | None:
    """The tokens a model at `start` (or the base of an adapter) can see at once; None where there is no model. Raises
    UserError where that is none that continues text, so that it could answer."""
    adapter = Path(start) / "adapter_config.json"
    if adapter.exists():
        return context_length(json.loads(adapter.read_text(encoding="utf-8"))["base_model_name_or_path"])
    if Path(start).is_dir() and not (Path(start) / "config.json").exists():
        return None
    check_objective(start)
    return AutoConfig.from_pretrained(start, trust_remote_code=False).max_position_embeddings


def longest_row(section: Tuning, start: Path | str, folder: str) -> int | None:
    """The tokens a row may have: `training.max_length`, else as many as the model at `start` sees; None where there is
    none yet. Raises UserError for more than it sees."""
    context, asked = context_length(start), section.training.get("max_length")
    if asked and context and asked > context:
        raise UserError(
            f"{folder}.training.max_length: {asked} tokens are more than the {context} that {start} sees; lower it, or "
            "go on pretraining at a longer context first (docs/architecture.md)"
        )
    return asked or context


def check_start(start: Path | str, folder: str) -> None:
    """Raise UserError for an adapter, on which no other can be put: PEFT notes the model below as the base of both."""
    if (Path(start) / "adapter_config.json").exists():
        merged = Path(start).parent if (Path(start).parent / "config.json").exists() else None
        remedy = f"name {merged}, which has it merged" if merged else "merge it first (PEFT's merge_and_unload)"
        raise UserError(f"{folder}.model: {start} is an adapter itself; {remedy}")


def without_special_texts(rows: list[Dataset], tokenizer: PreTrainedTokenizerBase, allow_drop: float) -> list[Dataset]:
    """Rows of messages without those in which someone typed the text of a special token, and says how many. Raises
    UserError where they are more than the share `allow_drop` of all, or a side has no others.

    TRL renders a chat to one string, in which a typed `<|im_end|>` would end the turn. Rows of ids come through as they
    are: `hf_llm.tokenization.chat_encoding` has kept what was typed as text.
    """
    names = rows[0].column_names
    columns = [name for name in ("prompt", "chosen", "rejected", "completion", "messages") if name in names]
    if "input_ids" in names or not columns:
        return rows
    specials = special_texts(tokenizer)

    def is_plain(row: dict[str, Any]) -> bool:
        texts = [json.dumps(row[name], ensure_ascii=False) for name in columns]
        return not any(special in text for special in specials for text in texts)

    kept = [part.select([number for number, row in enumerate(part) if is_plain(row)]) for part in rows]
    total, left = sum(map(len, rows)), sum(map(len, rows)) - sum(map(len, kept))
    what = f"{left:,} of {total:,} rows have the text of a special token in them ({', '.join(specials[:4])})"
    if left > allow_drop * total or not all(map(len, kept)):
        raise UserError(
            f"{what}, which would end a turn within a message; take it out (messages stand in lists, without a "
            f"template's marks), or write `allow_drop: {math.ceil(100 * left / total) / 100}` to go on without them"
        )
    if left:
        print_main(f"{what} and are left out")
    return kept


def load_chat_model(start: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """The language model at `start`, which stops where the tokenizer's turns end."""
    return stop_at_end_of_turn(load_model(start), tokenizer)


def freeze_balancing(model: PreTrainedModel) -> None:
    """Leave the biases that balance experts as pretraining made them: no loss of TRL's moves them, and DDP waits for
    the gradient of all that can be trained."""
    for name, parameter in model.named_parameters():
        if name.endswith("e_score_correction_bias"):
            parameter.requires_grad_(False)


def tuning_trainer(
    trainer_class: type[Trainer],
    arguments_class: type[TrainingArguments],
    section: Tuning,
    making: StageOutput,
    seed: int,
    start: str,
    rows: list[Dataset],
    load: Callable[[str, PreTrainedTokenizerBase], PreTrainedModel] = load_chat_model,
    task: str = "CAUSAL_LM",
    **defaults: Any,
) -> Trainer:
    """A TRL trainer of the model at `start` on `rows` (training, held out), with adapters where the section says so.

    `load` makes the model of `start`, `task` is the adapters' `task_type`. `defaults` are the stage's own training
    arguments and yield to the recipe's. Raises UserError for a tokenizer that chat models cannot be trained with, or
    arguments that do not go together.
    """
    tokenizer = chat_tokenizer(start, making.path.parent)
    if section.lora is not None or task == "SEQ_CLS":
        check_start(start, making.folder)
    rows = without_special_texts(rows, tokenizer, section.allow_drop)
    if section.quantize:
        model = stop_at_end_of_turn(load_quantized(start, section.quantize, making.folder), tokenizer)
    else:
        model = load(start, tokenizer)
    freeze_balancing(model)
    if "max_length" in arguments_class.__dataclass_fields__:
        defaults = {"max_length": model.config.max_position_embeddings, **defaults}
    if "router_aux_loss_coef" in arguments_class.__dataclass_fields__:
        defaults = {"router_aux_loss_coef": 0.0, **defaults}  # TRL adds what it is to the losses that it logs
    arguments = training_arguments(
        arguments_class,
        section.training,
        making.path,
        seed,
        making.folder,
        report_to=reporters(section.training.get("report_to")),
        eval_strategy="epoch",
        **defaults,
    )
    with arguments.main_process_first(local=False, desc="writing the rows"):
        (train, digest), (held_out, _) = (shared(part, making.path / ROWS) for part in rows)
    try:
        trainer = trainer_class(
            model=model,
            args=arguments,
            train_dataset=train,
            eval_dataset=held_out,
            processing_class=tokenizer,
            peft_config=LoraConfig(**{"task_type": task, **section.lora}) if section.lora is not None else None,
        )
    except (ValueError, NotImplementedError) as error:  # TRL checks there what its configs do not
        raise UserError(f"{making.folder}.training: {one_line(error)}") from error
    trainer.rows_digest = digest  # for the fingerprint: TRL has made other columns of them
    return trainer
