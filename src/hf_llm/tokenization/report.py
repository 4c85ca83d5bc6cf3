"""Measure how good a tokenizer is on text it has not seen, by source and language, and beside other tokenizers."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer
    from transformers import PreTrainedTokenizerFast

SAMPLES = {
    "digits": ["2024", "3.14159", "1,000,000"],
    "white space": ["    return x", "\t\tx = 1\n\n\n", "a  b   c"],
    "words": ["The quick brown fox", "internationalisation", "naïve café"],
}
MAX_GROUPS_SHOWN = 12  # sources, and languages, in the printed table

Batch = tuple[list[str], list[str], list[str]]  # texts, their sources, their languages


@dataclass
class _TokenizerCounts:
    """Counts of one tokenizer over the texts so far."""

    name: str
    tokenizer: "PreTrainedTokenizerFast"
    tokens: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))
    """Tokens by the value of `source` and of `language`."""
    differ: int = 0
    """Texts that are changed by encoding and decoding."""
    example: str = ""
    """The first such change."""

    def __post_init__(self) -> None:
        largest_id = max(self.tokenizer.get_vocab().values())
        self.is_used = np.zeros(largest_id + 1, bool)  # (ids,)

    def add_batch(self, batch: Batch) -> None:
        """Encode a batch of texts and add up its tokens."""
        texts, sources, languages = batch
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        backend.encode_special_tokens = False

        self._count_changed(texts, encodings)
        for encoding, source, language in zip(encodings, sources, languages, strict=True):
            self.tokens["source"][source] += len(encoding)
            self.tokens["language"][language] += len(encoding)
            self.is_used[encoding.ids] = True

    def _count_changed(self, texts: list[str], encodings: "list[Encoding]") -> None:
        ids = [encoding.ids for encoding in encodings]
        decoded_texts = self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        for text, decoded in zip(texts, decoded_texts, strict=True):
            if text != decoded:
                self.differ += 1
                self.example = self.example or _describe_difference(text, decoded)

    def report_row(self, documents: int, size: int) -> dict:
        """Return the row of `tokenizers` in the report, for this many documents and bytes."""
        return {
            "tokenizer": self.name,
            "vocab_size": len(self.tokenizer),
            "bytes_per_token": size / max(self.tokens["source"].total(), 1),
            "unused_share": 1 - float(self.is_used.mean()),
            "documents": documents,
            "differ": self.differ,
            "example": self.example,
        }


def measure_tokenizer(
    tokenizer: "PreTrainedTokenizerFast",
    batches: Iterable[Batch],
    limit: int,
    others: "dict[str, PreTrainedTokenizerFast] | None" = None,
    name: str = "this run",
) -> dict:
    """Measure a tokenizer over the first `limit` bytes of held-out text, and `others` on the same.

    Special tokens written in a text are text here, as in the token shards. Returns

    - `tokenizers`: a row each, `bytes_per_token`, `unused_share` of the vocabulary, in how many `documents` the text is
      changed by encoding and decoding (`differ`) and the first such place (`example`);
    - `by_source`, `by_language`: a row for each with its `bytes` and `documents`, and bytes per token by tokenizer;
    - `samples`: how some typical text is cut;
    - `bytes_per_token`, `documents`, `bytes` of the whole for the tokenizer itself.
    """
    tokenizers = {name: tokenizer, **(others or {})}
    counts = [_TokenizerCounts(label, each) for label, each in tokenizers.items()]

    # Bytes and documents by the value of "source" and of "language".
    sizes = defaultdict(Counter)
    documents = defaultdict(Counter)
    for batch in batches:
        for text, source, language in zip(*batch, strict=True):
            size = len(text.encode("utf-8"))
            sizes["source"][source] += size
            sizes["language"][language] += size
            documents["source"][source] += 1
            documents["language"][language] += 1
        for each in counts:
            each.add_batch(batch)
        if sizes["source"].total() >= limit:
            break

    total_documents = documents["source"].total()
    total_bytes = sizes["source"].total()
    rows = [each.report_row(total_documents, total_bytes) for each in counts]
    return {
        "bytes_per_token": rows[0]["bytes_per_token"],
        "documents": total_documents,
        "bytes": total_bytes,
        "tokenizers": rows,
        "by_source": _group_rows("source", counts, sizes["source"], documents["source"]),
        "by_language": _group_rows("language", counts, sizes["language"], documents["language"]),
        "samples": _split_samples(tokenizer.backend_tokenizer),
    }


def format_report(report: dict) -> str:
    """Return the rows of a report as lines to print, the largest sources first."""
    names = [row["tokenizer"] for row in report["tokenizers"]]
    width = max(len(name) for name in ["tokenizer", *names])

    lines = [f"  {'tokenizer':<{width}}  bytes/token  unused  texts changed  vocabulary"]
    for row in report["tokenizers"]:
        cells = [
            f"{row['tokenizer']:<{width}}",
            f"{row['bytes_per_token']:>11.3f}",
            f"{row['unused_share']:>6.1%}",
            f"{row['differ']:>13,}",
            f"{row['vocab_size']:>10,}",
        ]
        lines.append("  " + "  ".join(cells))

    for group in ("source", "language"):
        for row in report[f"by_{group}"][:MAX_GROUPS_SHOWN]:
            value = row[group] or "(none)"
            numbers = ", ".join(f"{name} {row[name]:.3f}" for name in names)
            lines.append(f"  {group} {value}: {numbers}")
    return "\n".join(lines)


def _group_rows(group: str, counts: list[_TokenizerCounts], sizes: Counter, documents: Counter) -> list[dict]:
    """Return a row for each source or language, the largest first."""
    rows = []
    for value, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0])):
        row = {group: value, "documents": documents[value], "bytes": size}
        for each in counts:
            row[each.name] = size / max(each.tokens[group][value], 1)
        rows.append(row)
    return rows


def _describe_difference(text: str, decoded: str) -> str:
    """Return the characters around the first difference of two texts."""
    position = min(len(text), len(decoded))
    for i, (character, other) in enumerate(zip(text, decoded, strict=False)):
        if character != other:
            position = i
            break
    nearby = slice(max(0, position - 10), position + 20)
    return f"{text[nearby]!r} became {decoded[nearby]!r}"


def _split_samples(backend: "Tokenizer") -> dict[str, dict[str, list[str]]]:
    """Return the tokens of each of `SAMPLES`."""
    samples = {}
    for title, texts in SAMPLES.items():
        samples[title] = {text: _split_text(backend, text) for text in texts}
    return samples


def _split_text(backend: "Tokenizer", text: str) -> list[str]:
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return [backend.decode([token]) for token in ids]
