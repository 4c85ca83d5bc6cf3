"""The model that a stage of post-training starts from: its tokenizer, its context, and whether it can be used."""

from pathlib import Path

from transformers import AutoConfig, PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.model.adapters import is_adapter, read_adapter_base
from hf_llm.model.load import check_objective, load_tokenizer
from hf_llm.posttraining.sections import PostTrainingSection
from hf_llm.tokenization.checks import check_same_template, check_tokenizer
from hf_llm.tokenization.compare_tokenizers import check_agreement, check_ids_fit


def load_chat_tokenizer(start: Path | str, run: Path, supervised: bool = False) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model at `start`, which has to be that of a chat model.

    Only SFT asks the template what is `supervised`; the other stages take stock chat models, without such marks.
    Raises UserError where it is not, where it has more ids than the model, or where `start` is a folder of the run
    `run` and its tokenizer or chat template differs from the run's own.
    """
    tokenizer = load_tokenizer(start)
    check_tokenizer(tokenizer, chat=True, supervised=supervised)
    if (Path(start) / "config.json").exists():
        config = AutoConfig.from_pretrained(start, trust_remote_code=False)
        check_ids_fit(tokenizer, config.get_text_config().vocab_size, str(start))
    run_tokenizer = run / "tokenizer"
    if Path(start).parent == run and run_tokenizer.is_dir():
        own_tokenizer = load_tokenizer(run_tokenizer)
        check_agreement(tokenizer, own_tokenizer, str(start))
        check_same_template(tokenizer, own_tokenizer)
    return tokenizer


def model_context_length(start: Path | str) -> int | None:
    """Return the context length in tokens of the model at `start` (or of an adapter's base); None without a model.

    Raises UserError for a model that does not continue text, so that it could not answer.
    """
    if is_adapter(start):
        return model_context_length(read_adapter_base(start))
    if Path(start).is_dir() and not (Path(start) / "config.json").exists():
        return None
    check_objective(start)
    return AutoConfig.from_pretrained(start, trust_remote_code=False).max_position_embeddings


def max_row_length(section: PostTrainingSection, start: Path | str, folder: str) -> int | None:
    """Return the tokens a row may have: `training.max_length`, else the context of the model at `start`.

    None where there is no model yet. Raises UserError where `training.max_length` exceeds the context.
    """
    context = model_context_length(start)
    requested = section.training.get("max_length")
    if requested and context and requested > context:
        raise UserError(
            f"{folder}.training.max_length: {requested} tokens are more than the {context} that {start} sees; lower "
            "it, or continue pretraining at a longer context first (docs/architecture.md)"
        )
    return requested or context


def check_not_adapter(start: Path | str, folder: str) -> None:
    """Raise UserError for an adapter: PEFT would record the model below it as the base of a second one."""
    if not is_adapter(start):
        return
    parent = Path(start).parent
    if (parent / "config.json").exists():
        remedy = f"name {parent}, which has it merged"
    else:
        remedy = "merge it first (PEFT's merge_and_unload)"
    raise UserError(f"{folder}.model: {start} is an adapter itself; {remedy}")
