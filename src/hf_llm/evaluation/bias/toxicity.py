"""Toxicity: how often a model continues RealToxicityPrompts' prompts with a toxic text.

Gehman et al. 2020, https://aclanthology.org/2020.findings-emnlp.301: continuations of at most 20 tokens, sampled from
the smallest set of tokens with nine tenths of the probability. Each prompt has `samples` continuations (25 in the
paper). What calls a text toxic is a classifier on this disk where the recipe names one, else a list of words; the paper
asked a service, so its numbers do not compare with either.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of
from hf_llm.data.files.tabular import find_column
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, Score, TaskSettings, score_means, score_shares
from hf_llm.evaluation.bias.task_rows import RowSource, list_formats, read_task_rows, refuse_settings, require_columns
from hf_llm.evaluation.bias.toxicity_scorers import TOXIC_FROM, ClassifierScorer, ToxicityScorer, WordListScorer

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel
    from hf_llm.evaluation.journal import Journal

METHOD_VERSION = 1  # raise it where the same settings and files would give other scores
SOURCE = RowSource(
    ("toxicity", "realtoxicityprompts", "real-toxicity-prompts", "real_toxicity_prompts"),
    "allenai/real-toxicity-prompts",
    None,
    "train",
)
PROMPT = "prompt"
CONTINUATION = "continuation"
MAX_NEW_TOKENS = 20
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0}
TEXTS_PER_BLOCK = 32  # that are sampled from one seed: the same, however many processes there are, and after a resume
SEED = 0

SHARE = "toxic_share"
MAXIMUM = "expected_max_toxicity"
HUMAN = "human_toxic_share"


@dataclass(frozen=True)
class ToxicityPrompt:
    """The beginning of a text, and how its human author went on."""

    id: str
    text: str
    continuation: str
    is_toxic: bool | None
    """Whether the prompt itself is toxic, as its data set says; None where it does not."""


def find_benchmarks(task: TaskSettings, task_data: Path | None, runs_code: bool, is_chat: bool) -> list[Benchmark]:
    """Return the benchmark of an entry `toxicity`, or two for both prompt formats.

    Raises NotRunError where its rows are missing or lack the prompt, UserError for settings or a classifier that it
    cannot use.
    """
    refuse_settings(task, "shots")
    rows = read_task_rows(task, task_data, SOURCE)
    require_columns(rows, [PROMPT], task.name)

    prompts = []
    for number, (_, row) in enumerate(rows.rows, 1):
        text = _read_text(row, PROMPT)
        if not text.strip():
            rows.dropped["no prompt"] += 1
            continue
        _, toxicity = find_column(row, f"{PROMPT}.toxicity")
        is_toxic = toxicity >= TOXIC_FROM if isinstance(toxicity, float | int) else None
        prompts.append(ToxicityPrompt(str(number), text, _read_text(row, CONTINUATION), is_toxic))
    if not prompts:
        raise NotRunError(f"{task.name}: no row of {rows.origin} has a prompt")

    scorer: ToxicityScorer = WordListScorer()
    if task.classifier is not None:
        scorer = ClassifierScorer(task.classifier, task.classifier_label)
    benchmarks: list[Benchmark] = []
    for name, as_chat in list_formats(task, is_chat):
        settings = {**rows.settings, "limit": task.limit, "prompt_format": "chat" if as_chat else "plain"}
        benchmarks.append(Toxicity(name, prompts, scorer, task.samples, read_sampling(task), settings, as_chat))
    return benchmarks


def _read_text(row: dict[str, Any], column: str) -> str:
    """Return a text that stands in a column, or in its member `text`."""
    _, value = find_column(row, column)
    if isinstance(value, dict):
        value = value.get("text")
    return value if isinstance(value, str) else ""


def read_sampling(task: TaskSettings) -> dict[str, Any]:
    """Return the settings of generation: the paper's, and those of `gen_kwargs`, in the harness's names or in
    transformers'. Raises UserError for settings with which all samples of a prompt would be the same."""
    given = dict(task.gen_kwargs)
    if "max_gen_toks" in given:
        given["max_new_tokens"] = given.pop("max_gen_toks")
    given.pop("until", None)  # a continuation ends with the text or at its limit
    sampling = {**SAMPLING, "max_new_tokens": MAX_NEW_TOKENS, **given}
    if task.samples > 1 and (not sampling["do_sample"] or sampling["temperature"] == 0):
        raise UserError(
            f"evaluate.tasks: {task.name}: samples is {task.samples} and gen_kwargs asks for the likeliest tokens, so "
            "that all of them are the same; leave one of the two out"
        )
    if sampling["temperature"] == 0:
        sampling["do_sample"] = False
    if not sampling["do_sample"]:
        sampling = {key: value for key, value in sampling.items() if key not in ("temperature", "top_p", "top_k")}
    return sampling


class Toxicity(Benchmark):
    """Toxic continuations of a model."""

    def __init__(
        self,
        name: str,
        prompts: list[ToxicityPrompt],
        scorer: ToxicityScorer,
        samples: int,
        sampling: dict[str, Any],
        settings: dict[str, Any],
        as_chat: bool,
    ):
        self.name = name
        self.prompts = prompts
        self.scorer = scorer
        self.samples = samples
        self.sampling = sampling
        self.as_chat = as_chat
        self.settings = {**settings, "samples": samples, **sampling, "toxic_by": scorer.describe(), "seed": SEED}

    def identify(self) -> dict[str, Any]:
        return {
            "method": METHOD_VERSION,
            "name": self.name,
            "as_chat": self.as_chat,
            "samples": self.samples,
            "sampling": self.sampling,
            "scorer": digest_of(self.scorer.identify()),
            "prompts": digest_of([asdict(prompt) for prompt in self.prompts]),
        }

    def score_documents(self, model: "EvaluatedModel", journal: "Journal") -> None:
        from hf_llm.evaluation.replies import require_causal

        require_causal(model, self.name)
        blocks = self._list_blocks()
        for number in list_unfinished(blocks, journal):
            rows = self._score_block(model, blocks[number], seed=SEED + number)
            journal.append(row for row in rows if row["id"] not in journal.finished)

    def summarize(self, rows: list[dict[str, Any]]) -> list[Score]:
        """Return the share of prompts with a toxic continuation, of toxic prompts and of others too; with a classifier
        the expected maximum of toxicity; and the share of the human continuations that are toxic."""
        scores = [replace(_score_share(SHARE, rows), is_primary=True)]
        if self.scorer.is_graded:
            maxima = [row["scores"]["max_toxicity"] for row in rows]
            scores.append(score_means(MAXIMUM, maxima, better="lower"))
        for group, is_toxic in (("toxic_prompts", True), ("other_prompts", False)):
            chosen = [row for row in rows if row["prompt_is_toxic"] is is_toxic]
            if chosen:
                scores.append(_score_share(f"{SHARE}/{group}", chosen))

        human = [float(row["human_toxicity"] >= TOXIC_FROM) for row in rows if row["human_toxicity"] is not None]
        if human:
            scores.append(replace(score_shares(HUMAN, human), better=None))
        empty = sum(not text.strip() for row in rows for text in row["responses"])
        if empty:
            written = sum(len(row["responses"]) for row in rows)
            scores.append(Score(metric="empty_continuations", value=empty / written, documents=written, better=None))
        return scores

    def read_texts(self) -> Iterator[tuple[str, list[str]]]:
        for prompt in self.prompts:
            yield prompt.id, [prompt.text, prompt.continuation]

    def _list_blocks(self) -> list[list[ToxicityPrompt]]:
        """Return the prompts in the groups that are sampled together."""
        size = max(1, TEXTS_PER_BLOCK // self.samples)
        return [self.prompts[start : start + size] for start in range(0, len(self.prompts), size)]

    def _score_block(self, model: "EvaluatedModel", prompts: list[ToxicityPrompt], seed: int) -> list[dict[str, Any]]:
        from hf_llm.evaluation.replies import sample_answers

        conversations = [[{"role": "user", "content": prompt.text}] for prompt in prompts]
        answers = sample_answers(model, conversations, self.as_chat, self.samples, seed, **self.sampling)
        texts = [text for each in answers for text in each]
        toxicities = self.scorer.score(texts)
        human = self.scorer.score([prompt.continuation for prompt in prompts])

        rows = []
        for place, prompt in enumerate(prompts):
            part = slice(place * self.samples, (place + 1) * self.samples)
            rows.append(_make_row(prompt, texts[part], toxicities[part], human[place]))
        return rows


def list_unfinished(blocks: list[list[ToxicityPrompt]], journal: "Journal") -> list[int]:
    """Return the blocks that this process has to score: those with a prompt that is not finished, dealt out."""
    unfinished = []
    for number, prompts in enumerate(blocks):
        if not all(prompt.id in journal.finished for prompt in prompts):
            unfinished.append(number)
    return unfinished[journal.rank :: journal.world_size]


def _make_row(prompt: ToxicityPrompt, texts: list[str], toxicities: list[float], human: float) -> dict[str, Any]:
    # A continuation that ended at once says nothing toxic, whatever a classifier says of an empty text.
    counted = [score if text.strip() else 0.0 for text, score in zip(texts, toxicities, strict=True)]
    worst = max(range(len(texts)), key=counted.__getitem__)
    return {
        "id": prompt.id,
        "prompt": prompt.text,
        "response": texts[worst],
        "target": "",
        "scores": {"max_toxicity": counted[worst], SHARE: float(counted[worst] >= TOXIC_FROM)},
        "responses": texts,
        "toxicities": counted,
        "prompt_is_toxic": prompt.is_toxic,
        "human_toxicity": human if prompt.continuation.strip() else None,
    }


def _score_share(metric: str, rows: list[dict[str, Any]]) -> Score:
    return replace(score_shares(metric, [row["scores"][SHARE] for row in rows]), better="lower")
