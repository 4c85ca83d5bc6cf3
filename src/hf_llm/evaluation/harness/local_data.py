"""Rows of a benchmark in local files to the columns that the harness's task reads.

The sets lie around in several forms: as their authors published them, as the Hub has them, and as llm-foundry's rows
(`query`, `choices`, `gold`). Each form of a set becomes the columns of its Hub data set, so that a task scores the same
as on the Hub's rows. A set that is not in `SETS` is read with its columns as they are.
"""

import csv
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.file_formats import FORMATS
from hf_llm.data.files.read_errors import ReadErrors, describe_counts
from hf_llm.data.files.tabular import read_rows
from hf_llm.evaluation.benchmark import NotRunError

Row = dict[str, Any]

ROW_SUFFIXES = FORMATS["rows"]
DESCRIPTIONS = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}

# Words of a file's name or folder that say which split it is.
SPLIT_WORDS = {
    "train": "train",
    "training": "train",
    "dev": "validation",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class BadRowError(Exception):
    """A row cannot become one of the set: why."""


class MissingColumnError(Exception):
    """A row does not have a column that its set needs: its name."""


@dataclass(frozen=True)
class DataNeed:
    """The data that a task reads."""

    task: str
    path: str
    """The Hub data set, or the loader, that the task's file names."""
    name: str | None
    """The subset of it."""
    scored_split: str
    shot_split: str | None
    """Where solved examples are from; None where the task is scored without."""

    @property
    def set_name(self) -> str:
        """The last part of the Hub id."""
        return self.path.rpartition("/")[2]


@dataclass
class LocalData:
    """The rows of a task, as the harness's task reads them."""

    splits: dict[str, list[Row]] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    """What was left out, a sentence each."""


# ---- finding the files


def find_data_files(need: DataNeed, data: str | None, task_data: Path | None) -> dict[Path, str] | None:
    """Return the local files of a task with the split that each holds; None where `task_data` has none of it.

    `data` is what the task's entry in the recipe names, a file or folder. In the folder `task_data` the files are those
    called like the task or its set, in it or in a folder of it: `hellaswag/`, `mc_misc/arc_easy.jsonl`,
    `blimp/wh_island.jsonl`, `mmlu/test/anatomy_test.csv`. Raises UserError where `data` is not there, `NotRunError`
    where it holds nothing of the task.
    """
    if data is not None:
        path = Path(data).expanduser()
        if not path.exists():
            raise UserError(f"evaluate.tasks: {need.task}: data: {data} is not there")
        if path.is_file():
            return {path: need.scored_split}
        files = _choose_files(list_row_files(path), need)
        if not files:
            raise NotRunError(f"{path} has no file of rows for {_describe(need)}")
        return assign_splits(files, path, need)

    if task_data is None:
        return None
    for place in _list_places(task_data, need):
        files = [place] if place.is_file() else _choose_files(list_row_files(place), need)
        if files:
            return assign_splits(files, task_data, need)
    return None


def list_row_files(folder: Path) -> list[Path]:
    """List the files of rows below a folder, hidden ones and descriptions left out."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(root, name)
            if content_suffix(path) in ROW_SUFFIXES and name not in DESCRIPTIONS and not name.startswith("."):
                files.append(path)
    return files


def assign_splits(files: list[Path], root: Path, need: DataNeed) -> dict[Path, str]:
    """Return the split of each file, by words of its name, else of its folders; else the split that is scored."""
    own_splits = {need.scored_split, need.shot_split}
    splits = {}
    for path in files:
        relative = path.relative_to(root) if path.is_relative_to(root) else path
        parts = [_stem(path), *reversed(relative.parent.parts)]
        words = [word for part in parts for word in reversed(re.findall(r"[a-z]+", part.lower()))]
        word = next((word for word in words if word in SPLIT_WORDS), None)
        if word is None:
            splits[path] = need.scored_split
        elif word in own_splits:  # MMLU has both a validation split and one called dev, for the shots
            splits[path] = word
        else:
            splits[path] = SPLIT_WORDS[word]
    return splits


def _list_places(task_data: Path, need: DataNeed) -> Iterator[Path]:
    """Yield the files and folders of `task_data` that are called like the task, then like its set; those in it before
    those in folders of it."""
    if not task_data.is_dir():
        raise UserError(f"evaluate.task_data: {task_data} is not a folder")
    top = sorted(path for path in task_data.iterdir() if not path.name.startswith("."))
    within = sorted(path for folder in top if folder.is_dir() for path in folder.iterdir())

    names = [need.task, need.name or "", need.set_name]
    if need.set_name in GENERIC_NAMES or need.path in GENERIC_NAMES:
        names.pop()
    wanted = [_plain(name) for name in names if _plain(name) not in GENERIC_NAMES]
    for paths in (top, within):
        for name in wanted:
            for path in paths:
                if _plain(_stem(path) if path.is_file() else path.name) != name:
                    continue
                if path.is_dir() or content_suffix(path) in ROW_SUFFIXES:
                    yield path


# Names of subsets and loaders that say nothing about what is in them.
GENERIC_NAMES = {
    "",
    "default",
    "main",
    "all",
    "json",
    "csv",
    "parquet",
    "arrow",
    "text",
    "multiplechoice",
    "generation",
}


def _choose_files(files: list[Path], need: DataNeed) -> list[Path]:
    """Return the files of the task's subset, where the set has subsets with a file each."""
    subset = _plain(need.name or "")
    is_divided = need.path in DIVIDED_SETS
    if not subset or subset in GENERIC_NAMES:
        return files
    chosen = [path for path in files if _names_subset(path, subset)]
    return chosen if chosen or is_divided else files


def _names_subset(path: Path, subset: str) -> bool:
    words = re.split(r"[^a-z0-9]+", _stem(path).lower())
    without_split = "".join(word for word in words if word not in SPLIT_WORDS)
    return subset in (without_split, "".join(words), _plain(path.parent.name))


def _stem(path: Path) -> str:
    """Return a file's name without its suffixes: `arc_easy.jsonl.gz` to `arc_easy`."""
    suffix = content_suffix(path)
    return path.name[: path.name.lower().rfind(suffix)] if suffix else path.name


def _plain(name: str) -> str:
    """Return a name as letters and digits, so that OpenBookQA is open_book_qa."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _describe(need: DataNeed) -> str:
    subset = f", {need.name}" if need.name and _plain(need.name) not in GENERIC_NAMES else ""
    return f"{need.task} ({need.path}{subset})"


# ---- reading them


def read_local_data(need: DataNeed, files: dict[Path, str]) -> LocalData:
    """Read the rows of a task's files. Raises `NotRunError` for a split or column that it needs and they lack.

    Rows that cannot be read are dropped, counted and named in `problems`.
    """
    data = LocalData(files=list(files))
    for split, role in ((need.scored_split, "it is scored on"), (need.shot_split, "its solved examples are from")):
        if split is not None and split not in files.values():
            there = ", ".join(sorted(set(files.values())))
            raise NotRunError(
                f"{need.task} needs the split {split!r}, which {role}; {_name_files(list(files))} has only {there}. "
                f"Add a file with {split!r} in its name"
                + (", or set shots: 0" if split == need.shot_split and split != need.scored_split else "")
            )

    for path, split in files.items():
        if split in (need.scored_split, need.shot_split):
            data.splits.setdefault(split, []).extend(read_set_rows(need, path, data.problems))
    return data


def read_set_rows(need: DataNeed, path: Path, problems: list[str]) -> list[Row]:
    """Return the rows of a file as the task's set has them. Raises `NotRunError` where none can be read."""
    form = SETS.get(need.path) or SETS.get(f"{need.path}:{need.name}")
    errors = ReadErrors()
    missing: Counter[str] = Counter()
    rows: list[Row] = []
    columns: list[str] = []
    read = form.read if form else read_rows
    try:
        for number, row in read(path, errors):
            columns = columns or list(row)
            try:
                rows.append(form.convert_row(row) if form else row)
            except MissingColumnError as error:
                missing[str(error)] += 1
                errors.drop_record(f"no column {str(error)!r}", f"{path}, line {number}")
            except BadRowError as error:
                errors.drop_record(str(error), f"{path}, line {number}")
    except OSError as error:
        raise NotRunError(f"{need.task}: {path} cannot be read: {error.strerror}") from error
    except UserError as error:
        raise NotRunError(f"{need.task}: {error}") from error

    if missing and not rows:
        column = missing.most_common(1)[0][0]
        raise NotRunError(f"{need.task} needs the column {column!r}; {path} has {', '.join(map(str, columns))}")
    if not rows:
        reasons = describe_counts(errors.dropped) or "it is empty"
        raise NotRunError(f"{need.task}: {path} has no row that can be read: {reasons}")
    if errors.dropped:
        dropped = errors.dropped.total()
        problems.append(
            f"{dropped:,} of {dropped + len(rows):,} rows of {path} cannot be read and are left out: "
            f"{describe_counts(errors.dropped)} (first: {errors.samples[0]})"
        )
    return rows


def _name_files(files: list[Path]) -> str:
    if len(files) == 1:
        return str(files[0])
    return str(os.path.commonpath(files))


# ---- the forms of each set


@dataclass(frozen=True)
class SetForm:
    """The columns of a set on the Hub that the harness's tasks read, and how other forms of its rows become them."""

    columns: tuple[str, ...]
    convert: Callable[[Row], Row]
    read: Callable[[Path, ReadErrors], Iterator[tuple[int, Row]]] = read_rows

    def convert_row(self, row: Row) -> Row:
        """Return the row with the set's columns. Raises MissingColumnError or BadRowError."""
        converted = self.convert(row)
        for column in self.columns:
            if column not in converted:
                raise MissingColumnError(column)
            if converted[column] is None:
                raise BadRowError(f"{column!r} is empty")
        return {column: converted[column] for column in self.columns}


def keep_row(row: Row) -> Row:
    """A form that has the set's own columns already."""
    return row


def read_columns(row: Row, *names: str) -> list[Any]:
    """Return values of a row. Raises MissingColumnError for one that it lacks."""
    for name in names:
        if name not in row:
            raise MissingColumnError(name)
    return [row[name] for name in names]


def read_foundry_row(row: Row) -> tuple[str, list[str], int]:
    """Return query, choices and the place of the right one of a row of llm-foundry."""
    query, choices, gold = read_columns(row, "query", "choices", "gold")
    if not isinstance(query, str) or not isinstance(choices, list):
        raise BadRowError("'query' is not a text, or 'choices' is not a list")
    if not isinstance(gold, int) or not 0 <= gold < len(choices):
        raise BadRowError(f"'gold' is not the place of one of {len(choices)} choices")
    return query, choices, gold


def label_choices(choices: list[str]) -> Row:
    """Return choices with a letter each, as ARC and OpenBookQA have them."""
    return {"text": choices, "label": list(LETTERS[: len(choices)])}


def split_labelled_choices(choices: Any) -> Row:
    """Return `[{text, label}, ...]`, as in the authors' files, as one list of each."""
    if isinstance(choices, dict):
        return choices
    try:
        return {key: [choice[key] for choice in choices] for key in ("text", "label")}
    except (TypeError, KeyError) as error:
        raise BadRowError("'choices' are not texts with labels") from error


def convert_arc(row: Row) -> Row:
    """ARC: llm-foundry's query `Question: ...`, or the authors' `question: {stem, choices}`."""
    return _convert_labelled_question(row, "question", "Question: ")


def convert_openbookqa(row: Row) -> Row:
    """OpenBookQA: llm-foundry's query, or the authors' `question: {stem, choices}`."""
    return _convert_labelled_question(row, "question_stem", "")


def _convert_labelled_question(row: Row, column: str, prefix: str) -> Row:
    if "query" in row:
        query, choices, gold = read_foundry_row(row)
        return {
            column: query.removeprefix(prefix).strip(),
            "choices": label_choices(choices),
            "answerKey": LETTERS[gold],
        }
    converted = dict(row)
    if isinstance(row.get("question"), dict):
        stem, choices = read_columns(row["question"], "stem", "choices")
        converted |= {column: stem, "choices": choices}
    if "choices" in converted:
        converted["choices"] = split_labelled_choices(converted["choices"])
        key = converted.get("answerKey")
        if key is not None and key.strip() not in converted["choices"]["label"]:
            raise BadRowError("'answerKey' is not the label of a choice")
    return converted


def convert_piqa(row: Row) -> Row:
    """PIQA: llm-foundry's query `Question: ...` with two choices."""
    if "query" not in row:
        return row
    query, choices, gold = read_foundry_row(row)
    if len(choices) != 2:
        raise BadRowError(f"{len(choices)} choices in place of two")
    return {"goal": query.removeprefix("Question: ").strip(), "sol1": choices[0], "sol2": choices[1], "label": gold}


def convert_copa(row: Row) -> Row:
    """COPA: llm-foundry's query `The premise, because` or `..., therefore` with two choices."""
    if "query" not in row:
        return row
    query, choices, gold = read_foundry_row(row)
    premise, _, connector = query.rstrip().rpartition(" ")
    relations = {"because": "cause", "therefore": "effect", "so": "effect"}
    if connector not in relations or len(choices) != 2:
        raise BadRowError("the query does not end with because or therefore, or there are not two choices")
    return {
        "premise": f"{premise.rstrip(' ,.')}.",
        "choice1": choices[0],
        "choice2": choices[1],
        "question": relations[connector],
        "label": gold,
    }


def convert_boolq(row: Row) -> Row:
    """BoolQ: llm-foundry's query `Passage: ... Question: ...?` with choices no and yes, or the authors' `answer`."""
    if "query" in row:
        query, choices, gold = read_foundry_row(row)
        passage, _, question = query.rpartition("\nQuestion: ")
        answer = choices[gold].strip().lower()
        if not passage or answer not in ("no", "yes"):
            raise BadRowError("the query is not a passage and a question, or the answer is not yes or no")
        passage = passage.removeprefix("Passage: ")
        return {"passage": passage, "question": question.strip().removesuffix("?"), "label": int(answer == "yes")}
    if "label" not in row and isinstance(row.get("answer"), bool):
        return {**row, "label": int(row["answer"])}
    return {**row, "label": int(row["label"])} if "label" in row else row


def convert_winogrande(row: Row) -> Row:
    """WinoGrande: llm-foundry's two `context_options`, which end with the options, and the `continuation` of both."""
    if "context_options" not in row:
        if row.get("answer") not in ("1", "2", None):
            raise BadRowError("'answer' is not 1 or 2")
        return row
    contexts, continuation, gold = read_columns(row, "context_options", "continuation", "gold")
    if len(contexts) != 2 or gold not in (0, 1):
        raise BadRowError("there are not two 'context_options', or 'gold' is not one of them")
    begin = shared_beginning(*contexts)
    begin = begin[: begin.rfind(" ") + 1]  # the options begin at a word
    options = [context[len(begin) :] for context in contexts]
    if "_" in begin or not all(options):
        raise BadRowError("the 'context_options' do not end with an option each")
    return {
        "sentence": f"{begin}_ {continuation.strip()}",
        "option1": options[0],
        "option2": options[1],
        "answer": str(gold + 1),
    }


def shared_beginning(first: str, second: str) -> str:
    """Return what two texts begin with alike."""
    length = min(len(first), len(second))
    return first[: next((place for place in range(length) if first[place] != second[place]), length)]


def convert_lambada(row: Row) -> Row:
    """LAMBADA: llm-foundry's `context` with its last word, the `continuation`."""
    if "context" not in row:
        return row
    context, word = read_columns(row, "context", "continuation")
    if " " in word.strip():
        raise BadRowError("the 'continuation' is not one word")
    return {"text": f"{context} {word.strip()}"}


def convert_hellaswag(row: Row) -> Row:
    """HellaSwag: the authors' rows, or llm-foundry's query `Activity: context`."""
    if "query" in row:
        query, choices, gold = read_foundry_row(row)
        activity, _, context = query.partition(": ")
        return {"activity_label": activity, "ctx_a": context, "ctx_b": "", "endings": choices, "label": str(gold)}
    label, endings = row.get("label"), row.get("endings")
    if label is not None and endings is not None and str(label) not in map(str, range(len(endings))):
        raise BadRowError("'label' is not the place of an ending")
    return {**row, "label": str(label)} if label is not None else row


def convert_truthfulqa(row: Row) -> Row:
    """TruthfulQA: the authors' CSV, whose cells hold several answers with semicolons between.

    As in their own code (sylinrl/TruthfulQA, utilities.py), mc1 has the best answer and the incorrect ones, mc2 all
    correct and all incorrect ones, the correct ones first, and each ends with a period.
    """
    if "Question" not in row:
        return row
    question, best, correct, incorrect = read_columns(
        row, "Question", "Best Answer", "Correct Answers", "Incorrect Answers"
    )
    right = split_answers(correct)
    wrong = split_answers(incorrect)
    if not best.strip() or not right or not wrong:
        raise BadRowError("there is no best, correct or incorrect answer")
    return {
        "type": row.get("Type", ""),
        "category": row.get("Category", ""),
        "question": question.strip(),
        "best_answer": best.strip(),
        "correct_answers": right,
        "incorrect_answers": wrong,
        "source": row.get("Source", ""),
        "mc1_targets": grade_choices([best.strip()], wrong),
        "mc2_targets": grade_choices(right, wrong),
    }


def split_answers(cell: str) -> list[str]:
    """Return the answers in a cell of TruthfulQA's CSV."""
    return [answer.strip() for answer in cell.split(";") if answer.strip()]


def grade_choices(right: list[str], wrong: list[str]) -> Row:
    """Return answers, each with a period at its end, and 1 for the right and 0 for the wrong ones."""
    choices = [answer if answer.endswith(".") else f"{answer}." for answer in [*right, *wrong]]
    return {"choices": choices, "labels": [1] * len(right) + [0] * len(wrong)}


def read_mmlu(path: Path, errors: ReadErrors) -> Iterator[tuple[int, Row]]:
    """Yield the rows of MMLU's own CSV files, which name no columns: question, four choices, letter of the answer."""
    if content_suffix(path) != ".csv":
        yield from read_rows(path, errors)
        return
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if number == 1 and cells[-1:] == ["answer"]:
                continue  # a copy that names the columns
            errors.records += 1
            if len(cells) != 6:
                errors.drop_record("not a question, four choices and an answer", f"{path}, line {number}")
                continue
            yield number, {"question": cells[0], "choices": cells[1:5], "answer": cells[5]}


def convert_mmlu(row: Row) -> Row:
    """MMLU: the answer as a letter or as a place."""
    answer = row.get("answer")
    if isinstance(answer, str):
        if answer.strip() not in tuple("ABCD"):
            raise BadRowError("'answer' is not A, B, C or D")
        answer = LETTERS.index(answer.strip())
    return row if answer is None else {"subject": "", **row, "answer": answer}


# Hub data set (and subset, where another one of it is another set) -> the form of its rows.
SETS = {
    "allenai/ai2_arc": SetForm(("question", "choices", "answerKey"), convert_arc),
    "allenai/openbookqa": SetForm(("question_stem", "choices", "answerKey"), convert_openbookqa),
    "baber/piqa": SetForm(("goal", "sol1", "sol2", "label"), convert_piqa),
    "aps/super_glue:copa": SetForm(("premise", "choice1", "choice2", "question", "label"), convert_copa),
    "aps/super_glue:boolq": SetForm(("passage", "question", "label"), convert_boolq),
    "allenai/winogrande": SetForm(("sentence", "option1", "option2", "answer"), convert_winogrande),
    "EleutherAI/lambada_openai": SetForm(("text",), convert_lambada),
    "Rowan/hellaswag": SetForm(("activity_label", "ctx_a", "ctx_b", "endings", "label"), convert_hellaswag),
    "truthfulqa/truthful_qa:multiple_choice": SetForm(("question", "mc1_targets", "mc2_targets"), convert_truthfulqa),
    "truthfulqa/truthful_qa:generation": SetForm(
        ("question", "best_answer", "correct_answers", "incorrect_answers"), convert_truthfulqa
    ),
    "cais/mmlu": SetForm(("question", "choices", "answer"), convert_mmlu, read_mmlu),
    "openai/gsm8k": SetForm(("question", "answer"), keep_row),
    "nyu-mll/blimp": SetForm(("sentence_good", "sentence_bad"), keep_row),
}

# Sets whose subsets are different questions: a folder without a file of the subset has nothing of the task.
DIVIDED_SETS = {"cais/mmlu", "nyu-mll/blimp", "allenai/ai2_arc", "aps/super_glue"}
