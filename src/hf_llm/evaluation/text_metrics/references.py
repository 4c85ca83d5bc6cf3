"""The entries of `evaluate.references`: texts of yours with references, for BLEU, ROUGE and chrF."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hf_llm.core.errors import UserError
from hf_llm.evaluation.benchmark import PromptFormat
from hf_llm.evaluation.text_metrics.metric_names import METRIC_NAMES

if TYPE_CHECKING:
    from hf_llm.evaluation.text_metrics.text_benchmark import TextBenchmark, TextDocument

NO_REFERENCE = "no reference"
NO_PROMPT = "no prompt"


@dataclass
class ReferenceSet:
    """One entry of `evaluate.references`: a `path` to rows, or `prompts` and `references` line by line, or `hypotheses`
    and `references`, where no model writes anything."""

    name: str | None = None
    """What results call it; default: the name of its file."""
    path: str | None = None
    """A JSONL, JSON, CSV, Parquet or Arrow file of rows with a prompt and a reference, or several."""
    prompt_column: str = "prompt"
    """The column of the prompts; `doc.text` is the member `text` of the column `doc`."""
    reference_column: str = "reference"
    """The column of the references: a text, or a list of texts."""
    prompts: str | None = None
    """A text file with one prompt on each line."""
    references: str | list[str] = field(default_factory=list)
    """A text file with the reference of each prompt or hypothesis on the same line; or several such files."""
    hypotheses: str | None = None
    """A text file with one finished text on each line, to be scored as it is."""
    metrics: list[str] = field(default_factory=lambda: ["bleu", "rougeL", "chrf"])
    """The scores, the most important first: bleu and chrf (0 to 100), rouge1, rouge2, rougeL and rougeLsum (0 to 1)."""
    bleu_tokenizer: Literal["13a", "intl", "zh", "char", "none"] = "13a"
    """What separates the words that BLEU counts; `zh` or `char` for languages that are written without spaces."""
    prompt_format: PromptFormat = "auto"
    """`plain` text, the model's `chat` template, or `both`; `auto` takes the template for models trained to chat."""
    max_new_tokens: int | None = None
    """Tokens of the longest answer; default: 256, or half of a short context."""
    limit: int | None = None
    """How many rows to score, the first ones; default: all."""

    def __post_init__(self) -> None:
        files = [self.references] if isinstance(self.references, str) else self.references
        self.references = files
        if self.path and (self.prompts or self.hypotheses or files):
            raise ValueError("`path` has the references in its rows; leave out prompts, hypotheses and references")
        if not self.path and (not files or bool(self.prompts) == bool(self.hypotheses)):
            raise ValueError("give `path`, or `references` with either `prompts` or `hypotheses`")

        if not self.metrics:
            raise ValueError(f"metrics is empty; choose from {', '.join(METRIC_NAMES)}")
        for metric in self.metrics:
            if metric not in METRIC_NAMES:
                raise ValueError(f"metrics: {metric!r} is unknown; choose from {', '.join(METRIC_NAMES)}")
        if len(set(self.metrics)) < len(self.metrics):
            raise ValueError(f"metrics names one twice: {', '.join(self.metrics)}")
        for key in ("max_new_tokens", "limit"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; give a whole number from 1")

    @property
    def title(self) -> str:
        """What results call it."""
        file = self.path or self.hypotheses or self.prompts
        assert file is not None  # one of them is given
        return self.name or Path(file).stem


def load_reference_benchmarks(reference_set: ReferenceSet, is_chat: bool, key: str) -> "list[TextBenchmark]":
    """Return the benchmark of an entry, or two for both prompt formats. `key` is its place in the recipe.

    `is_chat` is whether the model is trained to chat. Raises UserError for files that are missing, of different length
    or without such columns, and where packages are missing.
    """
    from hf_llm.core.extras import require_extras

    require_extras("eval")
    from hf_llm.evaluation.text_metrics.text_benchmark import TextBenchmark

    dropped: Counter[str] = Counter()
    if reference_set.path:
        documents = _read_rows(reference_set, dropped, key)
    else:
        documents = _read_lines(reference_set, dropped, key)
    if not documents:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in dropped.most_common()) or "it is empty"
        raise UserError(f"{key}: {reference_set.title} has no row to score ({reasons})")

    settings: dict[str, Any] = {"rows": len(documents), "limit": reference_set.limit}
    if dropped:
        settings["dropped"] = dict(dropped)
    if documents[0].hypothesis is not None:
        formats: list[str] = ["given"]
    elif reference_set.prompt_format == "both":
        formats = ["plain", "chat"]
    elif reference_set.prompt_format == "auto":
        formats = ["chat" if is_chat else "plain"]
    else:
        formats = [reference_set.prompt_format]

    benchmarks = []
    for prompt_format in formats:
        name = reference_set.title
        if len(formats) > 1 and prompt_format == "chat":
            name += " (chat)"
        benchmarks.append(
            TextBenchmark(
                name,
                documents,
                reference_set.metrics,
                {**settings, "prompt_format": prompt_format},
                as_chat=prompt_format == "chat",
                max_new_tokens=reference_set.max_new_tokens,
                bleu_tokenizer=reference_set.bleu_tokenizer,
            )
        )
    return benchmarks


def _read_rows(reference_set: ReferenceSet, dropped: Counter[str], key: str) -> "list[TextDocument]":
    """Read the rows of a table; those without a prompt or a reference, or that cannot be read, are counted."""
    from hf_llm.data.files.read_errors import ReadErrors
    from hf_llm.data.files.tabular import find_column, read_rows, unreadable_file_error
    from hf_llm.evaluation.text_metrics.text_benchmark import TextDocument

    path = Path(reference_set.path or "").expanduser()
    errors = ReadErrors()
    documents = []
    try:
        for number, row in read_rows(path, errors, column=reference_set.reference_column):
            values = {}
            for column in ("prompt_column", "reference_column"):
                name = getattr(reference_set, column)
                is_there, values[column] = find_column(row, name)
                if not is_there:
                    raise UserError(
                        f"{path}, row {number} has no column {name!r}; it has {', '.join(map(str, row))}: name the one "
                        f"that is meant with {key}.{column}"
                    )
            references = _list_references(values["reference_column"])
            prompt = values["prompt_column"]
            if not references:
                dropped[NO_REFERENCE] += 1
            elif not isinstance(prompt, str) or not prompt.strip():
                dropped[NO_PROMPT] += 1
            else:
                documents.append(TextDocument(str(number), [{"role": "user", "content": prompt}], references))
            if len(documents) == reference_set.limit:
                break
    except OSError as error:
        raise unreadable_file_error(path, error) from error
    dropped.update(errors.dropped)
    return documents


def _list_references(value: Any) -> list[str]:
    """Return the references in a cell: a text or a list of them, without empty ones."""
    texts = value if isinstance(value, list) else [value]
    return [text for text in texts if isinstance(text, str) and text.strip()]


def _read_lines(reference_set: ReferenceSet, dropped: Counter[str], key: str) -> "list[TextDocument]":
    """Read text files that belong together line by line; lines without a reference are counted."""
    from hf_llm.evaluation.text_metrics.text_benchmark import TextDocument

    column = "prompts" if reference_set.prompts else "hypotheses"
    path = getattr(reference_set, column)
    lines = _read_text_lines(Path(path).expanduser(), f"{key}.{column}")
    columns = []
    for file in reference_set.references:
        reference_lines = _read_text_lines(Path(file).expanduser(), f"{key}.references")
        if len(reference_lines) != len(lines):
            raise UserError(
                f"{key}: {path} has {len(lines):,} lines and {file} has {len(reference_lines):,}; line n of the one "
                "belongs to line n of the other"
            )
        columns.append(reference_lines)

    documents = []
    for number, (line, *texts) in enumerate(zip(lines, *columns, strict=True), 1):
        references = _list_references(texts)
        if not references:
            dropped[NO_REFERENCE] += 1
        elif column == "hypotheses":  # an empty one is a text too, and a bad one
            documents.append(TextDocument(str(number), [], references, hypothesis=line))
        elif not line.strip():
            dropped[NO_PROMPT] += 1
        else:
            documents.append(TextDocument(str(number), [{"role": "user", "content": line}], references))
        if len(documents) == reference_set.limit:
            break
    return documents


def _read_text_lines(path: Path, key: str) -> list[str]:
    """Return the lines of a text file, without their ends. Only line feeds end a line, as in the tools of WMT."""
    from hf_llm.data.files.compressed import open_file
    from hf_llm.data.files.tabular import unreadable_file_error
    from hf_llm.data.files.text_encoding import decode_text

    try:
        with open_file(path) as file:
            text = decode_text(file.read())
    except OSError as error:
        raise UserError(f"{key}: {unreadable_file_error(path, error)}") from error
    if text is None:
        raise UserError(f"{key}: {path} is not text in a known encoding; convert it to UTF-8 (`iconv -t utf8`)")
    lines = text.replace("\r\n", "\n").split("\n")
    if lines and not lines[-1]:
        lines.pop()
    return lines
