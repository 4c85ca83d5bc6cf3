"""A benchmark of texts with references: the model answers prompts, or the answers are given; BLEU, ROUGE, chrF."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from hf_llm.core.manifest import digest_of
from hf_llm.evaluation.benchmark import Benchmark, Score
from hf_llm.evaluation.text_metrics.choose_metrics import make_metrics

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel
    from hf_llm.evaluation.journal import Journal
    from hf_llm.evaluation.text_metrics.text_metric import TextMetric

METHOD_VERSION = 1  # raise it where the same settings and files would give other scores
ROWS_PER_BATCH = 256  # of given answers, which are only measured


@dataclass(frozen=True)
class TextDocument:
    """One text to write, and what it is compared with."""

    id: str
    prompt: list[dict[str, str]]
    """The messages before the answer; none where the answer is given."""
    references: list[str]
    hypothesis: str | None = None
    """The answer, where it is given and no model writes it."""


class TextBenchmark(Benchmark):
    """Texts of a model, or given ones, against their references."""

    def __init__(
        self,
        name: str,
        documents: list[TextDocument],
        metrics: Sequence[str],
        settings: dict[str, Any],
        *,
        as_chat: bool = False,
        max_new_tokens: int | None = None,
        bleu_tokenizer: str = "13a",
    ):
        """Take the documents and the names of the scores, the primary first. Raises UserError where a package of the
        metrics is missing."""
        self.name = name
        self.documents = documents
        self.metric_names = list(metrics)
        self.as_chat = as_chat
        self.max_new_tokens = max_new_tokens
        self.metrics = make_metrics(metrics, bleu_tokenizer)
        self.settings = {**settings, **self._describe_metrics()}

    @property
    def needs_model(self) -> bool:
        """Whether a model writes the texts. Given ones have the same scores whatever model is evaluated."""
        return any(document.hypothesis is None for document in self.documents)

    def identify(self) -> dict[str, Any]:
        return {
            "method": METHOD_VERSION,
            "name": self.name,
            "metrics": self.metric_names,
            "as_chat": self.as_chat,
            "max_new_tokens": self.max_new_tokens,
            "settings": self.settings,
            "documents": digest_of([asdict(document) for document in self.documents]),
        }

    def score_documents(self, model: "EvaluatedModel", journal: "Journal") -> None:
        by_id = {document.id: document for document in self.documents}
        documents = [by_id[name] for name in journal.select_documents(by_id)]
        if self.needs_model:
            self._answer_documents(documents, model, journal)
            return
        for start in range(0, len(documents), ROWS_PER_BATCH):
            batch = documents[start : start + ROWS_PER_BATCH]
            journal.append([self._measure(document, document.hypothesis or "") for document in batch])

    def summarize(self, rows: list[dict[str, Any]]) -> list[Score]:
        scores = []
        for metric in self.metrics:
            scores += metric.score_corpus([row["statistics"][_key(metric)] for row in rows])
        scores.sort(key=lambda score: self.metric_names.index(score.metric))
        first, *others = scores
        primary = Score(**{**asdict(first), "is_primary": True})
        return [primary, *others, *_count_cut(rows)]

    def read_texts(self) -> Iterator[tuple[str, list[str]]]:
        for document in self.documents:
            yield document.id, [*(message["content"] for message in document.prompt), *document.references]

    def _answer_documents(self, documents: list[TextDocument], model: "EvaluatedModel", journal: "Journal") -> None:
        from hf_llm.evaluation.replies import answer_in_batches, require_causal

        require_causal(model, self.name)
        prompts = [document.prompt for document in documents]
        for batch in answer_in_batches(model, prompts, self.as_chat, self.max_new_tokens):
            rows = []
            for index, answer in batch:
                row = self._measure(documents[index], answer.text.strip())
                rows.append({**row, "has_ended": answer.has_ended, "prompt_is_cut": answer.prompt_is_cut})
            journal.append(rows)

    def _measure(self, document: TextDocument, response: str) -> dict[str, Any]:
        """Return the row of the journal of a document: with its statistics, since a corpus is scored from them."""
        statistics = {}
        scores = {}
        for metric in self.metrics:
            statistics[_key(metric)] = metric.measure(response, document.references)
            scores |= metric.score_document(statistics[_key(metric)])
        return {
            "id": document.id,
            "prompt": "\n\n".join(message["content"] for message in document.prompt),
            "response": response,
            "target": document.references[0] if len(document.references) == 1 else document.references,
            "scores": scores,
            "statistics": statistics,
        }

    def _describe_metrics(self) -> dict[str, Any]:
        """Return what is shown beside the scores: BLEU's signature, and the texts that ROUGE reads only in part."""
        described: dict[str, Any] = {}
        counts = {len(document.references) for document in self.documents}
        for metric in self.metrics:
            if _key(metric) == "bleu":
                from hf_llm.evaluation.text_metrics.bleu import MIXED_REFERENCES, Bleu

                assert isinstance(metric, Bleu)
                references = counts.pop() if len(counts) == 1 else MIXED_REFERENCES
                described["bleu_signature"] = metric.format_signature(references)
            if _key(metric).startswith("rouge"):
                from hf_llm.evaluation.text_metrics.rouge import has_other_letters

                other = sum(any(map(has_other_letters, document.references)) for document in self.documents)
                if other:
                    described["rouge_note"] = (
                        f"ROUGE knows the letters a to z only, and {other:,} of {len(self.documents):,} references "
                        "have others, at which it cuts words; compare by chrF"
                    )
        return described


def _key(metric: "TextMetric") -> str:
    """Return the name under which a row holds the statistics of a metric."""
    return metric.names[0]


def _count_cut(rows: list[dict[str, Any]]) -> list[Score]:
    """Return the shares of answers without an end and of prompts without their beginning, where there are any."""
    scores = []
    answered = [row for row in rows if "has_ended" in row]
    counted = {
        "unfinished_answers": sum(not row["has_ended"] for row in answered),
        "cut_prompts": sum(row["prompt_is_cut"] for row in answered),
    }
    for metric, count in counted.items():
        if count:
            scores.append(Score(metric=metric, value=count / len(answered), documents=len(answered), better="lower"))
    return scores
