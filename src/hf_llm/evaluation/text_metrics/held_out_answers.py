"""Answers to the held-out rows of the SFT stage against the rows' own: BLEU, ROUGE-L and chrF.

The rows are not kept anywhere: they are the same for the same data, share and seed, and are read again here.
"""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import UserError
from hf_llm.core.extras import missing_packages
from hf_llm.data.chat.loaders import ConversationSource, load_conversations
from hf_llm.evaluation.benchmark import NotRunError

if TYPE_CHECKING:
    from hf_llm.evaluation.text_metrics.text_benchmark import TextBenchmark, TextDocument

NAME = "held_out_answers"
METRICS = ("bleu", "rougeL", "chrf")
MAX_ROWS = 200


def load_held_out_answers(
    sources: list[ConversationSource],
    *,
    evaluation_share: float,
    seed: int,
    allow_drop: float,
    corpus: Path | None,
    is_chat: bool,
    max_rows: int = MAX_ROWS,
    max_new_tokens: int | None = None,
) -> "TextBenchmark":
    """Return the benchmark of the rows that the SFT stage holds out with these settings of its section.

    At most `max_rows` of them, evenly spaced, so that every source has its part; the last answer of a conversation is
    what the model writes. Raises NotRunError where packages are missing or no row is left.
    """
    missing = missing_packages("eval")
    if missing:
        raise NotRunError(f"{NAME} needs {', '.join(missing)}: pip install 'hf-llm[eval]'")
    from hf_llm.evaluation.text_metrics.text_benchmark import TextBenchmark

    try:
        _, held_out, _ = load_conversations(sources, evaluation_share, seed, allow_drop, documents=True, corpus=corpus)
    except UserError as error:
        raise NotRunError(f"{NAME}: the rows of the sft section cannot be read again: {error}") from error

    left_out: Counter[str] = Counter()
    documents = []
    for number, row in enumerate(held_out):
        reason = _explain_exclusion(row)
        if reason:
            left_out[reason] += 1
        else:
            documents.append(_make_document(number, row))
    if not documents:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in left_out.most_common())
        raise NotRunError(f"{NAME}: no held-out row of the SFT stage has a question and an answer ({reasons})")

    chosen = _space_evenly(documents, max_rows)
    settings: dict[str, Any] = {
        "rows": f"{len(chosen):,} of {len(documents):,} held-out rows of the SFT stage",
        "prompt_format": "chat" if is_chat else "plain",
    }
    if left_out:
        settings["left_out"] = dict(left_out)
    return TextBenchmark(NAME, chosen, METRICS, settings, as_chat=is_chat, max_new_tokens=max_new_tokens)


def _explain_exclusion(row: dict[str, Any]) -> str | None:
    """Return why a row cannot be used here; None for one that can."""
    messages = row.get("messages")
    if not messages:
        return "documents without a question"
    if row.get("tools") or any(message.get("tool_calls") or message["role"] == "tool" for message in messages):
        return "rows with tools"
    if len(messages) < 2 or messages[-1]["role"] != "assistant" or not (messages[-1]["content"] or "").strip():
        return "rows without an answer at the end"
    return None


def _make_document(number: int, row: dict[str, Any]) -> "TextDocument":
    from hf_llm.evaluation.text_metrics.text_benchmark import TextDocument

    messages = [{"role": message["role"], "content": message["content"]} for message in row["messages"]]
    *prompt, answer = messages
    return TextDocument(str(number), prompt, [answer["content"]])


def _space_evenly(documents: "list[TextDocument]", count: int) -> "list[TextDocument]":
    """Return at most `count` of the documents, evenly spaced over all of them."""
    if len(documents) <= count:
        return documents
    return [documents[place * len(documents) // count] for place in range(count)]
