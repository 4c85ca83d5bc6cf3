"""Check that the files and folders that a recipe names are there, without opening any. Needs none of the libraries."""

from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.data.chat.loaders import ConversationSource, check_source_exists
from hf_llm.data.corpus.config import Corpus, Rules, Source
from hf_llm.data.corpus.filters.trained_filter import TrainedFilterSettings
from hf_llm.data.corpus.sources import ReadTask, list_read_tasks
from hf_llm.data.files.file_formats import FORMATS, find_files
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import get_column, read_rows
from hf_llm.evaluation.domains import TextDomain
from hf_llm.pipeline.find_model import check_model_path
from hf_llm.pipeline.stages import OPTIONAL
from hf_llm.pipeline.tokens_folder import read_index
from hf_llm.preflight.findings import Findings
from hf_llm.tokenization.import_tokenizer import TOKENIZER_SUFFIXES, load_tokenizer
from hf_llm.tokenization.train import TokenizerSection, load_chat_template


def check_named_files(recipes: dict[str, Any], findings: Findings) -> None:
    """Check the files and folders that the recipes of stages, by their folders, name.

    What is there is looked into later, by the check of the whole recipe. That says the same of what is missing.
    """
    if "corpus" in recipes:
        _check_corpus_files(recipes["corpus"].corpus, findings)
    if "tokenizer" in recipes:
        _check_tokenizer_files(recipes["tokenizer"].tokenizer, findings)
    if "base" in recipes:
        _check_pretraining_files(recipes["base"].pretrain, findings)
    for folder in OPTIONAL:
        if folder in recipes:
            _check_posttraining_files(folder, getattr(recipes[folder], folder), findings)
    if "evaluation" in recipes:
        _check_evaluation_files(recipes["evaluation"].evaluate, findings)


def _check_corpus_files(section: Corpus, findings: Findings) -> None:
    for position, source in enumerate(section.sources):
        key = f"corpus.sources[{position}]"
        if source.hub or (source.path and not exists(source.path)):
            findings.attempt(key, list_file_tasks, source, key)
    check_example_texts("corpus.rules", section.rules, findings)
    for position, source in enumerate(section.sources):
        if source.rules:
            check_example_texts(f"corpus.sources[{position}].rules", source.rules, findings)
    if section.decontaminate:
        for position, evaluation_set in enumerate(section.decontaminate.against):
            key = f"corpus.decontaminate.against[{position}]"
            if evaluation_set.path and not exists(evaluation_set.path):
                findings.attempt(key, check_evaluation_file, key, evaluation_set)


def _check_tokenizer_files(section: TokenizerSection, findings: Findings) -> None:
    for position, path in enumerate(section.data or ()):
        key = f"tokenizer.data[{position}]"
        if not exists(path):
            findings.attempt(key, list_file_tasks, Source(license="unknown", path=path), key)
    tokenizers = [(f"tokenizer.compare[{position}]", name) for position, name in enumerate(section.compare or ())]
    if section.use:
        tokenizers.append(("tokenizer.use", section.use))
    for key, name in tokenizers:
        if Path(name).suffix in TOKENIZER_SUFFIXES and not Path(name).is_file():
            findings.attempt(key, load_tokenizer, name, None, key)
    if section.chat_template:
        findings.attempt("tokenizer.chat_template", load_chat_template, section.chat_template)


def _check_pretraining_files(section: Any, findings: Findings) -> None:
    if section.start_from is not None:
        findings.attempt("pretrain.start_from", check_named_model, "pretrain.start_from", section.start_from)
    if section.tokens is not None:
        findings.attempt("pretrain.tokens", read_index, Path(section.tokens))
    if section.tokenizer is not None:
        findings.attempt("pretrain.tokenizer", check_model_path, section.tokenizer)
    folder = section.evaluate_tasks.task_data
    if folder and not exists(folder):
        findings.add_problem(
            "pretrain.evaluate_tasks.task_data", f"{folder} is not there; name a folder with files of tasks"
        )


def _check_posttraining_files(folder: str, section: Any, findings: Findings) -> None:
    _check_row_files(f"{folder}.data", section.data, findings)
    if section.model is not None:
        findings.attempt(f"{folder}.model", check_named_model, f"{folder}.model", section.model)


def _check_evaluation_files(section: Any, findings: Findings) -> None:
    for position, model in enumerate(section.models or ()):
        key = f"evaluate.models[{position}]"
        findings.attempt(key, check_named_model, key, model)
    _check_row_files("evaluate.questions", section.questions, findings)
    if section.text is not None:
        findings.attempt("evaluate.text", read_index, Path(section.text))
    for position, domain in enumerate(section.domains):
        key = f"evaluate.domains[{position}]"
        if not exists(domain.path):
            findings.attempt(key, list_domain_files, domain)
    if section.task_data and not exists(section.task_data):
        findings.add_problem(
            "evaluate.task_data", f"{section.task_data} is not there; name a folder with files of tasks"
        )
    for position, task in enumerate(section.task_settings):
        if task.data and not exists(task.data):
            findings.add_problem(f"evaluate.tasks[{position}].data", f"{task.data} is not there")


def _check_row_files(key: str, sources: list[ConversationSource], findings: Findings) -> None:
    for position, source in enumerate(sources):
        path = source.path or source.documents
        if path and not exists(path):
            findings.attempt(f"{key}[{position}]", check_source_exists, source)


def list_domain_files(domain: TextDomain) -> list[tuple[Path, str]]:
    """List the files of a domain. Raises UserError where there are none."""
    return find_files(domain.path, FORMATS["text"] | FORMATS["rows"])


def exists(path: str) -> bool:
    """Whether a path is a file or a folder. A pattern is neither: what it matches has to be listed."""
    return Path(path).expanduser().exists()


def list_file_tasks(source: Source, key: str) -> list[ReadTask]:
    """List the read tasks of a source on this disk; of others there are none.

    Raises UserError where there is nothing to read.
    """
    if source.hub and exists(source.hub):
        raise UserError(f"{key}.hub: {source.hub} is a path on this disk; write `path: {source.hub}`")
    if source.hub or source.crawl or (source.git and not Path(source.git).expanduser().is_dir()):
        return []  # would be downloaded
    try:
        return list_read_tasks([source])
    except UserError as error:
        raise UserError(f"{key}{str(error).removeprefix('corpus.sources[0]')}") from None


def check_example_texts(key: str, rules: Rules, findings: Findings) -> None:
    """Check that the texts on which filters are trained exist."""
    for name, settings in rules.enabled_filters():
        if not isinstance(settings, TrainedFilterSettings):
            continue
        for path in settings.example_paths():
            source = Source(license="unknown", path=path)
            try:
                list_read_tasks([source])
            except UserError as error:
                message = str(error).removeprefix("corpus.sources[0]: ")
                findings.add_problem(f"{key}.{name}", f"{key}.{name}: {message}")


def check_evaluation_file(key: str, evaluation_set: Any) -> None:
    """Raise UserError where an evaluation set on this disk has no rows, or not the columns that the recipe names."""
    for path, _ in find_files(evaluation_set.path, FORMATS["rows"]):
        row = next((row for _, row in read_rows(path, ReadErrors())), None)
        if row is None:
            raise UserError(f"{key}.path: {path} holds no rows; correct the path")
        for name in evaluation_set.columns or ():
            get_column(row, name, f"{key}.columns: {path}")


def check_named_model(key: str, path: str) -> None:
    """Raise UserError where a model that a recipe names is neither a folder of one nor an id on the Hub."""
    if not path.strip():
        raise UserError(f"{key}: is empty; name a folder or an id on the Hub, or leave it out")
    try:
        check_model_path(path)
    except UserError as error:
        raise UserError(f"{key}: {error}") from None
