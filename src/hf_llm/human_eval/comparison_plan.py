"""Plan a comparison of models, or of a file of answers: the prompts, and which two answers are shown together."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of, file_digest, file_digests, read_manifest
from hf_llm.core.surrogates import replace_lone_surrogates
from hf_llm.data.chat.formats import Unusable, parse_message
from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled_completions,
    load_preferences,
    load_prompts,
)
from hf_llm.data.corpus.corpus_files import list_corpus_files
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_rows
from hf_llm.pipeline.find_model import check_model_path
from hf_llm.pipeline.stages import ALIGNED_MODELS
from hf_llm.reporting.lineage import read_lineage

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...], the last message the user's

TABULAR_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")  # a file of prompts with another suffix is plain text
_EXAMPLE_ROW = '{"prompt": "What is a fox?", "gpt2": "An animal.", "ours": "A red animal."}'


@dataclass
class ComparisonPlan:
    """Everything about a comparison that is decided before the first vote."""

    models: dict[str, dict[str, Any]]
    """A model's name -> how its answers were made: path and sampling settings, or a file; and a digest."""
    prompts: list[Conversation]
    pairs: list[tuple[int, str, str]]
    """Prompt number, first model, second model, in the order in which pairs are shown."""
    seed: int
    answers: dict[str, dict[int, str]] = field(default_factory=dict)
    """Answers that exist already, by the model's name and the number of the prompt."""


def plan_from_answers_file(path: Path, seed: int, max_prompts: int | None = None) -> ComparisonPlan:
    """Plan a comparison of answers in a file: rows of `prompt` and, under any other names, one answer for each model.

    Raises UserError where the file or one of its rows does not have that form.
    """
    rows = _read_rows(path)[:max_prompts]
    keys = list(rows[0]) if rows else []
    names = [key for key in keys if key != "prompt"]
    if len(names) < 2 or "prompt" not in keys:
        raise UserError(f"{path} needs a prompt and two answers or more in each row, such as {_EXAMPLE_ROW}")

    for number, row in enumerate(rows, 1):
        has_same_keys = set(row) == {"prompt", *names}
        if not has_same_keys or not all(isinstance(row[name], str) for name in names):
            raise UserError(f"{path}, row {number}: needs a prompt and one text for each of {', '.join(names)}")

    prompts = []
    for number, row in enumerate(rows, 1):
        prompts.append(_parse_prompt(row["prompt"], where=f"{path}, row {number}"))
    digest = file_digest(path)
    models = {}
    answers = {}
    for name in names:
        models[name] = {"file": path.name, "digest": digest}
        answers[name] = {index: replace_lone_surrogates(row[name]) for index, row in enumerate(rows)}
    pairs = draw_pairs(len(prompts), names, seed)
    return ComparisonPlan(models, prompts, pairs, seed, answers)


def describe_models(
    paths: list[str], seed: int, max_new_tokens: int | None, sampling: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """Describe how each model's answers are made, by its short name: path, digest of the folder, sampling settings.

    A `max_new_tokens` of None means 256, or half of a short context. Raises UserError for fewer than two models and
    for one that is named twice.
    """
    if len(paths) < 2:
        raise UserError("name two models or more, or one file of answers")

    # A model goes by the last part of its path, unless two share it.
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        names = [str(path) for path in paths]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)} is named twice; a model cannot be compared with itself")

    settings = {**sampling, "max_new_tokens": max_new_tokens, "seed": seed}
    models = {}
    for name, path in zip(names, paths, strict=True):
        models[name] = {"path": path, "digest": digest_model(path), "sampling": settings}
    return models


def digest_model(path: str) -> str | None:
    """Return a digest of what a model folder holds; None for a model of the Hub. Raises UserError if it is missing."""
    check_model_path(path)
    folder = Path(path)
    if not folder.is_dir():
        return None
    manifest = read_manifest(folder)
    return manifest["digest"] if manifest else digest_of(file_digests(folder))


def draw_pairs(prompt_count: int, models: list[str], seed: int) -> list[tuple[int, str, str]]:
    """Draw one pair of models for each prompt, in random order, so that every two models meet equally often.

    Meetings differ by one at most. Where there are fewer prompts than pairs of models, prompts repeat until every two
    models have met.
    """
    assert prompt_count > 0 and len(models) > 1
    rng = random.Random(seed)
    prompt_order = list(range(prompt_count))
    model_pairs = list(combinations(models, 2))
    rng.shuffle(prompt_order)
    rng.shuffle(model_pairs)

    # No (prompt, pair) repeats: cycling both lists repeats only after the least common multiple of their lengths.
    pairs = []
    for index in range(max(len(prompt_order), len(model_pairs))):
        prompt = prompt_order[index % len(prompt_order)]
        first, second = model_pairs[index % len(model_pairs)]
        pairs.append((prompt, first, second))
    return pairs


def read_prompts_file(path: Path, max_prompts: int) -> list[Conversation]:
    """Read the first `max_prompts` different prompts of a file.

    Either plain text with a prompt on each line, or rows in any form that training reads, whose last answer is removed.
    Raises UserError where the file is missing or holds no prompts.
    """
    if not path.is_file():
        raise UserError(f"--prompts: there is no file {path}")

    if path.suffix in TABULAR_SUFFIXES:
        rows, *_ = load_prompts([ConversationSource(license="unknown", path=str(path))], 0, 0)
        prompts = [_prompt_of_row(row) for row in rows]
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        prompts = [_user_message(line.strip()) for line in lines if line.strip()]
    if not prompts:
        raise UserError(f"--prompts: {path} holds no prompts; write one on each line")
    return _drop_duplicates(prompts)[:max_prompts]


def collect_held_out_prompts(models: list[str], max_prompts: int) -> list[Conversation]:
    """Collect the first `max_prompts` prompts that the last stage of each model held out for evaluation.

    A prompt that any of the models, or a model it was made from, was trained on is excluded. The data are those named
    in the folders' manifests. Raises UserError where no manifest names any.
    """
    # The fine-tuning stages behind each model, oldest first.
    chat_stages = ("sft", *ALIGNED_MODELS)
    manifests_by_model = {}
    for model in models:
        manifests = read_lineage(Path(model)).values()
        manifests_by_model[model] = [manifest for manifest in manifests if manifest["folder"] in chat_stages]

    # Models often share stages: the data of each is read once.
    splits = {}
    for model, manifests in manifests_by_model.items():
        for manifest in manifests:
            if manifest["digest"] not in splits:
                corpus = _followed_corpus(manifest, Path(model).parent / "corpus")
                splits[manifest["digest"]] = _load_stage_prompts(manifest["folder"], manifest["recipe"], corpus)

    held_out: list[Conversation] = []
    trained_on: set[str] = set()
    for manifests in manifests_by_model.values():
        for manifest in manifests:
            train, evaluation = splits[manifest["digest"]]
            trained_on |= {digest_of(prompt) for prompt in train}
            if manifest is manifests[-1]:
                held_out += evaluation

    unseen = [prompt for prompt in _drop_duplicates(held_out) if digest_of(prompt) not in trained_on]
    if not unseen:
        raise UserError("the models' manifests name no held-out prompts; give some with --prompts FILE, one a line")
    return unseen[:max_prompts]


def _followed_corpus(manifest: dict[str, Any], corpus: Path) -> Path | None:
    """Return the corpus of a run where the rows of one of its stages follow the corpus's splits.

    Raises UserError where it is not there any more.
    """
    if not manifest["facts"].get("rows", {}).get("follows_corpus"):
        return None
    if not list_corpus_files(corpus, "train"):
        raise UserError(
            f"{corpus} is missing, by which {manifest['folder']} divided its rows: put it back, or give prompts with "
            "--prompts FILE"
        )
    return corpus


def _load_stage_prompts(folder: str, recipe: dict[str, Any], corpus: Path | None = None) -> list[list[Conversation]]:
    """Load the prompts of a stage's training and evaluation splits, exactly as that stage loads its data."""
    section = recipe[folder]
    loaders: dict[str, Callable] = {
        "sft": partial(load_conversations, documents=True),
        "dpo": load_preferences,
        "kto": load_labelled_completions,
    }
    if folder == "ppo":
        loaders["ppo"] = load_prompts if section["rows"] == "conversations" else load_preferences
    load = loaders.get(folder, load_prompts)

    sources = [ConversationSource(**source) for source in section["data"]]
    *splits, _ = load(sources, section["evaluation_share"], recipe["seed"], section["allow_drop"], corpus=corpus)

    prompts_by_split = []
    for rows in splits:
        conversations = [row for row in rows if row.get("text") is None]  # plain documents have no prompt
        prompts_by_split.append([_prompt_of_row(row) for row in conversations])
    return prompts_by_split


def _prompt_of_row(row: dict[str, Any]) -> Conversation:
    """Return a row of training data without its last answer."""
    messages = row["prompt"] if "prompt" in row else row["messages"][:-1]

    # The table of a data set gives every message every key; a key that was absent is None.
    prompt = []
    for message_row in messages:
        prompt.append({key: value for key, value in message_row.items() if value is not None})
    return prompt


def _drop_duplicates(prompts: list[Conversation]) -> list[Conversation]:
    return list({digest_of(prompt): prompt for prompt in prompts}.values())


def _read_rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    errors = ReadErrors()
    rows = [row for _, row in read_rows(path, errors)]
    if errors.dropped:
        raise UserError(f"{path} holds rows that cannot be read: {errors.samples[0]}; repair or remove them")
    return rows


def _parse_prompt(value: Any, where: str) -> Conversation:
    """Return a prompt given as text, or as messages that end with the user's. Raises UserError, which names `where`."""
    given_messages = value if isinstance(value, list) else _user_message(value)
    try:
        messages = [parse_message(given) for given in given_messages]
    except Unusable as error:
        raise UserError(f"{where}: {error}") from error
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise UserError(f"{where}: the prompt does not end with a message of the user; remove the row")
    return messages


def _user_message(content: Any) -> Conversation:
    return [{"role": "user", "content": content}]
