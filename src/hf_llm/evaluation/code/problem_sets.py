"""HumanEval and MBPP: their rows, from local files or the Hub, as problems with prompts and tests.

HumanEval (Chen et al. 2021, https://arxiv.org/abs/2107.03374) gives the beginning of a function with its docstring,
MBPP (Austin et al. 2021, https://arxiv.org/abs/2108.07732) a sentence and three assertions.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.data.files.compressed import content_suffix
from hf_llm.data.files.file_formats import FORMATS
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import read_hub_rows, read_rows, unreadable_file_error
from hf_llm.evaluation.benchmark import NotRunError

HUMAN_EVAL = "humaneval"
MBPP = "mbpp"

# Where a completion of plain text ends: the next thing at the top level after a function (Chen et al., section 2.2);
# the mark after each solved example of MBPP's prompt.
STOPS = {HUMAN_EVAL: ["\nclass", "\ndef", "\n#", "\nif", "\nprint"], MBPP: ["[DONE]"]}

MBPP_TEST_IDS = range(11, 511)  # the test split; 1 to 10 are for prompts
MBPP_SHOT_IDS = [2, 3, 4, 1, 5, 6, 7, 8, 9, 10]  # solved examples; the first three are the paper's
MBPP_SHOTS = 3

HUMAN_EVAL_REQUEST = (
    "Complete this Python function. Answer with the whole function, in one block of code.\n\n```python\n{prompt}\n```"
)
MBPP_REQUEST = (
    "Write a Python function. {text}\nYour code has to pass these tests:\n\n```python\n{tests}\n```\n"
    "Answer with the code of the function, in one block of code."
)
# The prompt of the paper, whose figures others compare with.
MBPP_PLAIN_REQUEST = (
    "You are an expert Python programmer, and here is your task: {text} "
    "Your code should pass these tests:\n\n{tests}\n[BEGIN]\n"
)
MBPP_END = "\n[DONE]"


@dataclass(frozen=True)
class Problem:
    """One problem of a set."""

    id: str
    """The number of its task_id."""
    question: str
    """What is asked, without what is the same in every prompt."""
    plain_prompt: str
    """The text that a base model completes."""
    request: str
    """The message that a chat model answers."""
    beginning: str
    """The beginning of the program, which a plain completion or the body of a function continues; may be empty."""
    header: str
    """What stands in the beginning before the function itself: imports and other functions."""
    entry_point: str
    """The function's name; empty where the problem does not say it."""
    solution: str
    """The set's own solution: the whole program."""
    tests: str
    """Code that raises an exception where a program that ran before it is wrong."""


@dataclass(frozen=True)
class Rows:
    """The rows of a set."""

    source: str
    """The file, folder or Hub data set that they are from."""
    rows: list[tuple[str, dict[str, Any]]]
    """Each with where it stands."""


def read_human_eval(data: Path | None) -> tuple[str, list[Problem]]:
    """Return where HumanEval is from, and its problems.

    Raises NotRunError where there is no such data or a column is missing, UserError for a file that cannot be read.
    """
    rows = read_local_rows(data) if data else download_rows("openai/openai_humaneval", None, ["test"], HUMAN_EVAL)
    problems = []
    for where, row in rows.rows:
        prompt = get_text(row, "prompt", where)
        entry_point = get_text(row, "entry_point", where)
        match = re.search(rf"^(async +)?def +{re.escape(entry_point)}\b", prompt, re.MULTILINE)
        header = prompt[: match.start()] if match else ""
        # The header again: a program may have changed a function that the tests call.
        tests = f"{header}\n{get_text(row, 'test', where)}\ncheck({entry_point})\n"
        problem = Problem(
            id=number_of(get_column(row, "task_id", where)),
            question=prompt,
            plain_prompt=prompt,
            request=HUMAN_EVAL_REQUEST.format(prompt=prompt.rstrip()),
            beginning=prompt,
            header=header,
            entry_point=entry_point,
            solution=prompt + get_text(row, "canonical_solution", where),
            tests=tests,
        )
        check_tests(problem, where)
        problems.append(problem)
    check_ids(problems, rows.source)
    return rows.source, problems


def read_mbpp(data: Path | None, shots: int) -> tuple[str, list[Problem]]:
    """Return where MBPP is from, and the problems of its test split, with `shots` solved examples in the plain prompts.

    Where no row has a number of the test split, all are taken that are not solved examples. Raises as `read_human_eval`
    does, and NotRunError where the rows of the examples are missing.
    """
    splits = ["test", "prompt"] if shots else ["test"]
    rows = read_local_rows(data) if data else download_rows("google-research-datasets/mbpp", "full", splits, MBPP)
    by_id = {}
    for where, row in rows.rows:
        number = number_of(get_column(row, "task_id", where))
        if number in by_id:
            raise UserError(f"{where}: a second row with task_id {number}; name one file with `data`")
        by_id[number] = (where, row)

    shot_ids = [str(number) for number in MBPP_SHOT_IDS[:shots]]
    missing = [number for number in shot_ids if number not in by_id]
    if missing:
        raise NotRunError(
            f"mbpp: {rows.source} lacks the solved examples with task_id {', '.join(missing)}; use the whole "
            "mbpp.jsonl, or set shots: 0 for the task"
        )
    examples = ""
    for number in shot_ids:
        where, row = by_id[number]
        examples += format_plain_request(row, where) + get_code(row, where) + MBPP_END + "\n"

    test_ids = [str(number) for number in MBPP_TEST_IDS if str(number) in by_id]
    problems = []
    for number in test_ids or [number for number in by_id if number not in shot_ids]:
        where, row = by_id[number]
        problem = Problem(
            id=number,
            question=f"{get_question(row, where)}\n{join_assertions(row, where)}",
            plain_prompt=examples + format_plain_request(row, where),
            request=MBPP_REQUEST.format(text=get_question(row, where), tests=join_assertions(row, where)),
            beginning="",
            header="",
            entry_point="",
            solution=get_code(row, where),
            tests=join_mbpp_tests(row, where),
        )
        check_tests(problem, where)
        problems.append(problem)
    check_ids(problems, rows.source)
    return rows.source, problems


# ---- rows


def read_local_rows(path: Path) -> Rows:
    """Read the rows of a file, or of all files of rows in a folder. Raises NotRunError where there are none, UserError
    for rows that cannot be read."""
    files = [path]
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if content_suffix(file) in FORMATS["rows"]]
    errors = ReadErrors()
    rows = []
    for file in files:
        try:
            rows += [(f"{file}, row {number}", row) for number, row in read_rows(file, errors)]
        except OSError as error:
            raise unreadable_file_error(file, error) from error
    if errors.dropped:
        raise UserError(f"{path}: rows that cannot be read:\n  " + "\n  ".join(errors.samples))
    if not rows:
        raise NotRunError(f"{path} holds no rows; it should hold a .jsonl or .jsonl.gz file")
    return Rows(str(path), rows)


def download_rows(hub: str, subset: str | None, splits: list[str], name: str) -> Rows:
    """Read the splits of a Hub data set. Raises NotRunError where it cannot be had."""
    rows = []
    try:
        for split in splits:
            rows += [(f"{hub}, {split}, row {n}", row) for n, row in read_hub_rows(hub, subset, split, False, None)]
    except UserError as error:
        raise NotRunError(
            f"{name} needs its rows: name their file with `data`, or put it into the folder {name} of "
            f"evaluate.task_data; otherwise\n  {error}"
        ) from error
    return Rows(hub, rows)


def get_column(row: dict[str, Any], name: str, where: str) -> Any:
    """Return a column. Raises NotRunError where it is missing."""
    if row.get(name) is None:
        raise NotRunError(f"{where}: there is no column {name}, only {', '.join(row)}")
    return row[name]


def get_text(row: dict[str, Any], name: str, where: str) -> str:
    """Return a column of text, its lines ending as Python's do. Raises NotRunError where it is missing or not text."""
    value = get_column(row, name, where)
    if not isinstance(value, str):
        raise NotRunError(f"{where}: {name} is not a text: {str(value)[:80]}")
    return value.replace("\r\n", "\n")


def number_of(task_id: Any) -> str:
    """Return the id of a problem: the number of `HumanEval/12`, which the ids of a set differ by."""
    text = str(task_id)
    match = re.fullmatch(r"\D*?(\d+)", text)
    return match[1] if match else text


def check_tests(problem: Problem, where: str) -> None:
    """Raise UserError where the tests are not Python."""
    try:
        ast.parse(problem.tests)
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{where}: cannot parse its tests as Python: {error}") from error


def check_ids(problems: list[Problem], source: str) -> None:
    """Raise UserError where two problems have the same id."""
    seen: set[str] = set()
    for problem in problems:
        if problem.id in seen:
            raise UserError(f"{source}: a second row with task_id {problem.id}; name one file with `data`")
        seen.add(problem.id)


# ---- MBPP's columns


def get_question(row: dict[str, Any], where: str) -> str:
    """Return the sentence of a row: `prompt` in the sanitized version, else `text`."""
    return get_text(row, "prompt" if row.get("prompt") is not None else "text", where).strip()


def get_code(row: dict[str, Any], where: str) -> str:
    """Return the row's own solution."""
    return get_text(row, "code", where).strip("\n")


def list_assertions(row: dict[str, Any], where: str) -> Iterator[str]:
    """Yield the assertions of a row. Raises NotRunError where there are none."""
    tests = get_column(row, "test_list", where)
    if not isinstance(tests, list) or not tests or not all(isinstance(test, str) for test in tests):
        raise NotRunError(f"{where}: test_list is not a list of assertions: {str(tests)[:80]}")
    for test in tests:
        yield test.replace("\r\n", "\n")


def join_assertions(row: dict[str, Any], where: str) -> str:
    """Return the assertions of a row, as prompts show them."""
    return "\n".join(list_assertions(row, where))


def format_plain_request(row: dict[str, Any], where: str) -> str:
    """Return the paper's prompt for one row."""
    return MBPP_PLAIN_REQUEST.format(text=get_question(row, where), tests=join_assertions(row, where))


def join_mbpp_tests(row: dict[str, Any], where: str) -> str:
    """Return the tests of a row as one program, after its imports and set-up, which may use the tested program."""
    parts = list(row.get("test_imports") or [])
    if row.get("test_setup_code"):
        parts.append(get_text(row, "test_setup_code", where))
    return "\n".join([*parts, *list_assertions(row, where)]) + "\n"
