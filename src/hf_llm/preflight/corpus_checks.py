"""Check the `corpus` and `tokenizer` sections: every file they name, the first documents, the packages, the disk."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hf_llm.core.errors import UserError
from hf_llm.core.extras import missing_packages, require_extras
from hf_llm.core.format import one_line
from hf_llm.data.corpus.config import Corpus, Source
from hf_llm.data.corpus.sources import ReadTask, list_read_tasks
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.tokens.mixing import check_shares
from hf_llm.preflight.findings import Findings
from hf_llm.preflight.host_checks import find_existing_folder
from hf_llm.preflight.hub_checks import check_repository
from hf_llm.preflight.named_files import check_evaluation_file, check_example_texts, list_file_tasks
from hf_llm.preflight.stand_in import build_stand_in_tokenizer
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.import_tokenizer import TOKENIZER_SUFFIXES, import_tokenizer, load_tokenizer
from hf_llm.tokenization.train import TokenizerSection

SAMPLE_DOCUMENTS = 20  # of each source
MAX_RECORDS_READ = 200  # of a source that yields no document
PACKAGES_OF_EXECUTORS = {"ray": "ray"}


def check_corpus(section: Corpus, folder: Path, findings: Findings) -> None:
    """Check the sources, evaluation sets and example texts of a `corpus` section whose output will be `folder`."""
    extras = ["corpus", *([section.executor] if section.executor == "ray" else [])]
    if findings.attempt("corpus", require_extras, *extras) is None and missing_packages(*extras):
        return
    from hf_llm.data.corpus.build import check_space, extras_of_tasks

    tasks = []
    labels = []
    is_all_empty = True
    for position, source in enumerate(section.sources):
        key = f"corpus.sources[{position}]"
        source_tasks = findings.attempt(key, list_local_tasks, source, key, findings)
        if source_tasks is None:
            continue
        tasks += source_tasks
        labels.append(label_source(source, source_tasks))
        extras = extras_of_tasks(source_tasks, section.executor)
        is_readable = findings.attempt(key, require_extras, *extras) is None and not missing_packages(*extras)
        if not is_readable or not source_tasks or findings.attempt(key, has_documents, source, section.max_chars):
            is_all_empty = False

    if section.sources and is_all_empty and not findings.has_problem("corpus"):
        findings.add_problem("corpus.sources", "none of these files holds a document; correct the paths, or add text")
    if not findings.has_problem("corpus"):
        findings.attempt("corpus", check_space, tasks, find_existing_folder(folder), section)
        check_source_shares(section, labels, findings)
    check_example_texts("corpus.rules", section.rules, findings)
    for position, source in enumerate(section.sources):
        if source.rules:
            check_example_texts(f"corpus.sources[{position}].rules", source.rules, findings)
    if section.decontaminate:
        check_evaluation_sets(section.decontaminate.against, findings)


def list_local_tasks(source: Source, key: str, findings: Findings) -> list[ReadTask]:
    """List the read tasks of a source on this disk. A source on the Hub is looked up there; of others there are none.

    Raises UserError where there is nothing to read.
    """
    tasks = list_file_tasks(source, key)
    if source.hub:
        check_repository(f"{key}.hub", source.hub, "dataset", findings)
    return tasks


def label_source(source: Source, tasks: list[ReadTask]) -> list[str]:
    """Return the names by which the ledger and `shares` call a source."""
    if tasks:
        return list(dict.fromkeys(task.label for task in tasks))
    if source.crawl:
        return [source.name or "common_crawl"]
    address = source.hub or source.git or source.synthetic or ""
    return [source.name or (address if source.hub else Path(address).name)]


def has_documents(source: Source, max_chars: int) -> bool:
    """Read the first documents of a source; False where it is empty. Raises UserError where none can be read."""
    from hf_llm.data.corpus.reader_step import SourceReader

    tasks = list_read_tasks([source])
    reader = SourceReader(tasks, max_chars)
    for rank in range(len(tasks)):
        if any(True for _ in islice(reader.run(None, rank, len(tasks)), SAMPLE_DOCUMENTS)):
            return True
        if reader.faults.dropped.total() >= MAX_RECORDS_READ:
            break
    if reader.faults.dropped:
        raise UserError(describe_unreadable(reader.faults))
    return False


def describe_unreadable(errors: ReadErrors) -> str:
    """Describe what made every record of a source unusable, with an example."""
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in errors.dropped.most_common())
    example = next((text for texts in errors.examples.values() for text in texts), "")
    lines = [f"none of the first records can be read ({reasons}); correct the source, or leave it out"]
    if example:
        lines.append(f"  for example {example}")
    return "\n  ".join(lines)


def check_source_shares(section: Corpus, labels: list[list[str]], findings: Findings) -> None:
    """Check that shares name sources of the corpus."""
    names = list(dict.fromkeys(name for source_labels in labels for name in source_labels))
    if section.shares:
        findings.attempt("corpus.shares", check_shares, section.shares, names)
    curriculum = section.curriculum
    if curriculum and curriculum.by == "mix":
        together = {name: share for stage in curriculum.stages for name, share in stage.shares.items()}
        where = "corpus.curriculum.stages' shares, taken together,"
        findings.attempt("corpus.curriculum", check_shares, together, names, where)


def check_evaluation_sets(sets: list[Any], findings: Findings) -> None:
    """Check that the evaluation sets exist, and have the columns that the recipe names."""
    for position, evaluation_set in enumerate(sets):
        key = f"corpus.decontaminate.against[{position}]"
        if evaluation_set.hub:
            check_repository(f"{key}.hub", evaluation_set.hub, "dataset", findings)
        elif evaluation_set.path:
            findings.attempt(key, check_evaluation_file, key, evaluation_set)


def check_tokenizer_section(
    section: TokenizerSection, denoising_tokens: list[str], findings: Findings
) -> PreTrainedTokenizerBase | None:
    """Check the `tokenizer` section. Return the tokenizer that it names, or a byte-level stand-in for one that will be
    trained; None where neither can be built now."""
    for position, path in enumerate(section.data or ()):
        key = f"tokenizer.data[{position}]"
        findings.attempt(key, list_local_tasks, Source(license="unknown", path=path), key, findings)
    for position, name in enumerate(section.compare or ()):
        check_named_tokenizer(f"tokenizer.compare[{position}]", name, None, findings)

    if not section.use:
        return findings.attempt("tokenizer", build_checked_stand_in, section, denoising_tokens)
    if not check_named_tokenizer("tokenizer.use", section.use, section.pattern, findings):
        return None
    return findings.attempt("tokenizer.use", import_checked, section, denoising_tokens)


def check_named_tokenizer(key: str, name: str, pattern: str | None, findings: Findings) -> bool:
    """Check an existing tokenizer, and return whether it can be loaded from this disk."""
    is_file = Path(name).suffix in TOKENIZER_SUFFIXES
    if is_file or Path(name).is_dir():
        return findings.attempt(key, load_tokenizer, name, pattern, key) is not None
    check_repository(key, name, "model", findings)
    if findings.has_problem(key):
        return False
    try:
        load_tokenizer(name, pattern, key, local_files_only=True)
    except UserError:
        return False  # it will be downloaded
    return True


def import_checked(section: TokenizerSection, denoising_tokens: list[str]) -> PreTrainedTokenizerBase:
    """Load the tokenizer that `section.use` names, and check that a model can be trained with it."""
    tokenizer = import_tokenizer(section, denoising_tokens)
    check_templated_tokenizer(tokenizer)
    return tokenizer


def build_checked_stand_in(section: TokenizerSection, denoising_tokens: list[str]) -> PreTrainedTokenizerBase:
    """Build the stand-in of a tokenizer that will be trained, and check its chat template."""
    check_vocabulary_room(section, denoising_tokens)
    tokenizer = build_stand_in_tokenizer(replace(section, vocab_size=TokenizerSection().vocab_size), denoising_tokens)
    tokenizer.name_or_path = section.chat_template or "chatml"
    check_templated_tokenizer(tokenizer)
    return tokenizer


def check_vocabulary_room(section: TokenizerSection, denoising_tokens: list[str]) -> None:
    """Raise UserError where the vocabulary has no room for the bytes and the special tokens."""
    from hf_llm.tokenization.train import BYTE_TOKENS, special_tokens

    smallest = BYTE_TOKENS + len(special_tokens(0, denoising_tokens))
    if section.vocab_size < smallest:
        raise UserError(
            f"tokenizer.vocab_size: {section.vocab_size} is too few for 256 bytes and the special tokens that this "
            f"model_type needs; write {smallest} or more"
        )


def check_templated_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise UserError where the chat template cannot be rendered, or a model cannot be trained with the tokenizer."""
    try:
        check_tokenizer(tokenizer, chat=True)
    except TemplateError as error:
        raise UserError(f"tokenizer.chat_template: cannot be rendered: {one_line(error)}") from error
