"""The rows of a bias benchmark: from the file or folder that a recipe names, the folder of task data, or the Hub."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.tabular import find_column, read_hub_rows, read_rows, unreadable_file_error
from hf_llm.evaluation.benchmark import NotRunError, TaskSettings

ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")


@dataclass(frozen=True)
class RowSource:
    """Where the rows of a benchmark are usually found."""

    names: tuple[str, ...]
    """Names that its folder or file has in a folder of task data."""
    hub: str
    """Its data set on the Hub."""
    subset: str | None
    split: str


@dataclass
class TaskRows:
    """The rows of a benchmark, each with the file and number that messages call it by."""

    rows: list[tuple[str, dict[str, Any]]]
    origin: str
    """The file, folder or data set that they are from."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Rows that could not be used, by reason."""

    @property
    def settings(self) -> dict[str, Any]:
        """What is shown beside the scores."""
        return {"data": self.origin, **({"dropped": dict(self.dropped)} if self.dropped else {})}

    def digest(self) -> str:
        """Return a digest of the rows, whatever file they are in."""
        return digest_of([row for _, row in self.rows])


def find_task_files(
    task: TaskSettings, task_data: Path | None, names: Sequence[str], suffixes: Sequence[str]
) -> list[Path]:
    """Return the local files of a task: of `data`, else what is called by one of `names` in the folder of task data;
    none where they have to come from the Hub.

    Raises UserError for `data` that is missing or holds no such file.
    """
    if task.data is not None:
        place = Path(task.data).expanduser()
        files = _list_files(place, suffixes)
        if not files:
            problem = f"holds no {', '.join(suffixes)} file" if place.exists() else "does not exist"
            raise UserError(
                f"evaluate.tasks: {task.name}: data: {place} {problem}; name the file or folder of its rows"
            )
        return files

    if task_data is None:
        return []
    for name in names:
        for place in sorted(task_data.glob(f"{name}*")):
            files = _list_files(place, suffixes)
            if files:
                return files
    return []


def _list_files(place: Path, suffixes: Sequence[str]) -> list[Path]:
    if place.is_file():
        return [place]
    files = [path for path in sorted(place.rglob("*")) if path.is_file()]
    return [path for path in files if path.name.removesuffix(".gz").endswith(tuple(suffixes))]


def read_task_rows(task: TaskSettings, task_data: Path | None, source: RowSource) -> TaskRows:
    """Read the rows of a task, the first `limit` of them.

    Raises NotRunError where they are nowhere on this disk and the Hub cannot be read, and where the files hold none.
    """
    files = find_task_files(task, task_data, source.names, ROW_SUFFIXES)
    if not files:
        return _read_from_hub(task, source)

    errors = ReadErrors()
    rows: list[tuple[str, dict[str, Any]]] = []
    for path in files:
        try:
            for number, row in read_rows(path, errors):
                rows.append((f"{path}, row {number}", row))
                if len(rows) == task.limit:
                    break
        except OSError as error:
            raise unreadable_file_error(path, error) from error
        if len(rows) == task.limit:
            break
    origin = str(files[0]) if len(files) == 1 else f"{files[0].parent} ({len(files)} files)"
    if not rows:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in errors.dropped.most_common())
        raise NotRunError(f"{task.name}: {origin} holds no rows{f' ({reasons})' if reasons else ''}")
    return TaskRows(rows, origin, Counter(errors.dropped))


def _read_from_hub(task: TaskSettings, source: RowSource) -> TaskRows:
    try:
        numbered = list(read_hub_rows(source.hub, source.subset, source.split, streaming=False, take=task.limit))
    except UserError as error:
        raise NotRunError(
            f"{task.name} needs its rows: put them into evaluate.task_data as {source.names[0]}/, or name their file "
            f"with `{{name: {task.name}, data: ...}}`. {error}"
        ) from error
    rows = [(f"{source.hub}, row {number}", row) for number, row in numbered]
    return TaskRows(rows, f"hub: {source.hub}")


def require_columns(rows: TaskRows, columns: Sequence[str], task: str) -> None:
    """Raise NotRunError, which names the first row's columns, where the rows lack some."""
    where, row = rows.rows[0]
    lacking = [name for name in columns if not find_column(row, name)[0]]
    if lacking:
        raise NotRunError(
            f"{task}: {where} has no column {', '.join(map(repr, lacking))}; it has {', '.join(map(str, row))}"
        )


def refuse_settings(task: TaskSettings, *names: str) -> None:
    """Raise UserError for settings of an entry that its benchmark has no use for."""
    defaults = TaskSettings(task.name)
    for name in names:
        value = getattr(task, name)
        if value not in (getattr(defaults, name), 0):
            raise UserError(f"evaluate.tasks: {task.name}: {name} is {value!r}, which it has no use for; leave it out")


def list_formats(task: TaskSettings, is_chat: bool) -> list[tuple[str, bool]]:
    """Return the name of the benchmark for each prompt format that an entry asks for, and whether that is a chat."""
    if task.prompt_format == "both":
        return [(task.name, False), (f"{task.name} (chat)", True)]
    as_chat = is_chat if task.prompt_format == "auto" else task.prompt_format == "chat"
    return [(task.name, as_chat)]
