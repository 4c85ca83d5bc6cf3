"""What is judged: models or files of answers, the prompts, and which two answers stand side by side."""

import random
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of, file_digest, file_digests, read_manifest
from hf_llm.core.surrogates import whole_characters
from hf_llm.data.chat.formats import Unusable, message
from hf_llm.data.chat.loaders import (
    ConversationSource,
    load_conversations,
    load_labelled,
    load_preferences,
    load_prompts,
)
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import file_rows
from hf_llm.pipeline.stages import ALIGNED_MODELS
from hf_llm.reporting.lineage import lineage

Conversation = list[dict[str, str]]  # [{"role": "user", "content": ...}, ...], the last one a question

ROWS = (".jsonl", ".json", ".csv", ".parquet")  # files of answers or prompts; any other file of prompts is plain text
_SAMPLE = '{"prompt": "What is a fox?", "gpt2": "An animal.", "ours": "A red animal."}'


@dataclass
class Plan:
    """A comparison: everything that is decided before the first vote.

    `models` says what made each model's answers; `pairs` are (prompt number, model, model) in the order of judging;
    `answers` those there already, by model and prompt number.
    """

    models: dict[str, dict[str, Any]]
    prompts: list[Conversation]
    pairs: list[tuple[int, str, str]]
    seed: int
    answers: dict[str, dict[int, str]] = field(default_factory=dict)


def plan_of_file(path: Path, seed: int, take: int | None = None) -> Plan:
    """A comparison of answers in a file: rows of `prompt` and, under any other names, one answer for each model."""
    rows = [row for _, row in _rows(path)][:take]
    names = [name for name in rows[0] if name != "prompt"] if rows else []
    if len(names) < 2 or "prompt" not in rows[0]:
        raise UserError(f"{path} holds no two answers to a prompt; a row that is understood: {_SAMPLE}")
    for number, row in enumerate(rows, 1):
        if set(row) != {"prompt", *names} or not all(isinstance(row[name], str) for name in names):
            raise UserError(f"{path}, row {number}: needs a prompt and one text for each of {', '.join(names)}")
    prompts = [_prompt(row, f"{path}, row {number}") for number, row in enumerate(rows, 1)]
    models = {name: {"file": path.name, "digest": file_digest(path)} for name in names}
    answers = {name: {number: whole_characters(row[name]) for number, row in enumerate(rows)} for name in names}
    return Plan(models, prompts, paired(len(prompts), names, seed), seed, answers)


def made_by(
    models: list[str], seed: int, max_new_tokens: int | None, sampling: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What makes the answers of each model, by its short name: path, digest of the folder, sampling settings.

    A `max_new_tokens` of None stands for 256, or half of a short context.
    """
    if len(models) < 2:
        raise UserError("name two models or more, or one file of answers")
    short = [Path(model).name for model in models]
    names = short if len(set(short)) == len(short) else [str(model) for model in models]
    if len(set(names)) < len(names):
        raise UserError(f"{max(names, key=names.count)} is named twice; a model cannot be compared with itself")
    settings = {**sampling, "max_new_tokens": max_new_tokens, "seed": seed}
    return {name: {"path": m, "digest": digest(m), "sampling": settings} for name, m in zip(names, models, strict=True)}


def digest(model: str) -> str | None:
    """A digest of what a model folder holds; None for a model of the Hub. Raises UserError for a missing folder."""
    from hf_llm.model.load import check_exists

    check_exists(model)
    if not Path(model).is_dir():
        return None
    manifest = read_manifest(Path(model))
    return manifest["digest"] if manifest else digest_of(file_digests(Path(model)))


def paired(prompts: int, models: list[str], seed: int) -> list[tuple[int, str, str]]:
    """One pair of models for each prompt, in random order, every two models equally often (give or take one).

    Where there are fewer prompts than pairs of models, prompts come again until all pairs have met.
    """
    assert prompts > 0 and len(models) > 1
    rng = random.Random(seed)
    order, matches = list(range(prompts)), list(combinations(models, 2))
    rng.shuffle(order)
    rng.shuffle(matches)
    # No two of these are the same, for both lists have gone round together only after their least common multiple.
    return [(order[i % len(order)], *matches[i % len(matches)]) for i in range(max(len(order), len(matches)))]


def prompts_of_file(path: Path, take: int) -> list[Conversation]:
    """The first `take` different prompts of a file: a line of plain text each, or rows in any form that training knows,
    whose last answer is left out. Raises UserError."""
    if not path.is_file():
        raise UserError(f"--prompts: there is no file {path}")
    if path.suffix in ROWS:
        rows, *_ = load_prompts([ConversationSource(license="unknown", path=str(path))], 0, 0)
        found = [_question(row) for row in rows]
    else:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        found = [_user(line.strip()) for line in lines if line.strip()]
    if not found:
        raise UserError(f"--prompts: {path} holds no prompts; write one on each line")
    return _different(found)[:take]


def held_out_prompts(models: list[str], take: int) -> list[Conversation]:
    """The first `take` prompts that the models' own data kept out of training: none of them has seen any, nor what it
    was made from.

    They come from the data that the folders' manifests name. Raises UserError where no manifest names any.
    """
    held_out, trained = [], set()
    stages = {
        model: [m for m in lineage(Path(model)).values() if m["folder"] in ("sft", *ALIGNED_MODELS)] for model in models
    }
    sides = {m["digest"]: _sides(m["folder"], m["recipe"]) for manifests in stages.values() for m in manifests}
    for manifests in stages.values():
        for manifest in manifests:
            train, evaluation = sides[manifest["digest"]]
            trained |= {digest_of(prompt) for prompt in train}
            held_out += evaluation if manifest is manifests[-1] else []
    unseen = [prompt for prompt in _different(held_out) if digest_of(prompt) not in trained]
    if not unseen:
        raise UserError("the models' manifests name no held-out prompts; give some with --prompts FILE, one a line")
    return unseen[:take]


def _sides(folder: str, recipe: dict[str, Any]) -> list[list[Conversation]]:
    """The prompts that the stage of `folder` was trained on, and those it held out: read as that stage reads them."""
    section = recipe[folder]
    load = {"sft": partial(load_conversations, documents=True), "dpo": load_preferences, "kto": load_labelled}
    if folder == "ppo":
        load["ppo"] = load_conversations if section["rows"] == "conversations" else load_preferences
    sources = [ConversationSource(**source) for source in section["data"]]
    read = load.get(folder, load_prompts)
    *sides, _ = read(sources, section["evaluation_share"], recipe["seed"], section["allow_drop"])
    return [[_question(row) for row in side if row.get("text") is None] for side in sides]


def _question(row: dict[str, Any]) -> Conversation:
    """A row of training data up to its last answer."""
    messages = row["prompt"] if "prompt" in row else row["messages"][:-1]
    # A data set's table has every key in every message, None where it was not there.
    return [{key: value for key, value in said.items() if value is not None} for said in messages]


def _different(prompts: list[Conversation]) -> list[Conversation]:
    return list({digest_of(prompt): prompt for prompt in prompts}.values())


def _rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    faults = Faults()
    rows = list(file_rows(path, faults))
    if faults.dropped:
        raise UserError(f"{path} holds rows that cannot be read: {faults.samples[0]}; mend or leave them out")
    return rows


def _prompt(row: dict[str, Any], where: str) -> Conversation:
    """The question of a row: text, or messages that end with the user's. Raises UserError."""
    given = row["prompt"]
    try:
        messages = [message(said) for said in (given if isinstance(given, list) else _user(given))]
    except Unusable as error:
        raise UserError(f"{where}: {error}") from error
    if not messages or messages[-1]["role"] != "user" or not messages[-1]["content"].strip():
        raise UserError(f"{where}: the prompt does not end with a question; leave the row out")
    return messages


def _user(content: Any) -> Conversation:
    return [{"role": "user", "content": content}]
