"""How good a tokenizer is on text it has not seen, by source and language, and beside other tokenizers."""

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

Batch = tuple[list[str], list[str], list[str]]  # texts, their sources, their languages


@dataclass
class _Tally:
    """One tokenizer's counts."""

    name: str
    tokenizer: "PreTrainedTokenizerFast"
    tokens: dict[str, Counter] = field(default_factory=lambda: defaultdict(Counter))  # "source" and "language"
    differ: int = 0
    example: str = ""

    def __post_init__(self) -> None:
        self.used = np.zeros(max(self.tokenizer.get_vocab().values()) + 1, bool)  # (ids,)

    def add(self, batch: Batch) -> None:
        texts, sources, languages = batch
        backend = self.tokenizer.backend_tokenizer
        backend.encode_special_tokens = True
        encodings = backend.encode_batch(texts, add_special_tokens=False)
        backend.encode_special_tokens = False
        self._compare(texts, encodings)
        for encoding, source, language in zip(encodings, sources, languages, strict=True):
            self.tokens["source"][source] += len(encoding)
            self.tokens["language"][language] += len(encoding)
            self.used[encoding.ids] = True

    def _compare(self, texts: list[str], encodings: "list[Encoding]") -> None:
        ids = [encoding.ids for encoding in encodings]
        decoded = self.tokenizer.backend_tokenizer.decode_batch(ids, skip_special_tokens=False)
        for text, back in zip(texts, decoded, strict=True):
            if text != back:
                self.differ += 1
                self.example = self.example or _difference(text, back)

    def row(self, documents: int, size: int) -> dict:
        return {
            "tokenizer": self.name,
            "vocab_size": len(self.tokenizer),
            "bytes_per_token": size / max(self.tokens["source"].total(), 1),
            "unused_share": 1 - float(self.used.mean()),
            "documents": documents,
            "differ": self.differ,
            "example": self.example,
        }


def tokenizer_report(
    tokenizer: "PreTrainedTokenizerFast",
    batches: Iterable[Batch],
    limit: int,
    others: "dict[str, PreTrainedTokenizerFast] | None" = None,
    name: str = "this run",
) -> dict:
    """Measure a tokenizer over the first `limit` bytes of held-out text, and `others` on the same.

    Special tokens written in a text are text here, as in the token shards. Returns

    - `tokenizers`: a row each, `bytes_per_token`, `unused_share` of the vocabulary, of how many `documents` the text
      comes back otherwise (`differ`) and the first such place (`example`);
    - `by_source`, `by_language`: a row for each with its `bytes` and `documents`, and bytes per token by tokenizer;
    - `samples`: how some typical text is cut;
    - `bytes_per_token`, `documents`, `bytes` of the whole for the tokenizer itself.
    """
    tallies = [_Tally(label, each) for label, each in {name: tokenizer, **(others or {})}.items()]
    sizes, counts = defaultdict(Counter), defaultdict(Counter)
    for batch in batches:
        for text, source, language in zip(*batch, strict=True):
            for what, value in (("source", source), ("language", language)):
                sizes[what][value] += len(text.encode("utf-8"))
                counts[what][value] += 1
        for tally in tallies:
            tally.add(batch)
        if sizes["source"].total() >= limit:
            break
    documents, size = counts["source"].total(), sizes["source"].total()
    rows = [tally.row(documents, size) for tally in tallies]
    return {
        "bytes_per_token": rows[0]["bytes_per_token"],
        "documents": documents,
        "bytes": size,
        "tokenizers": rows,
        "by_source": _by("source", tallies, sizes["source"], counts["source"]),
        "by_language": _by("language", tallies, sizes["language"], counts["language"]),
        "samples": {
            title: {text: _tokens(tokenizer.backend_tokenizer, text) for text in group}
            for title, group in SAMPLES.items()
        },
    }


def report_table(report: dict) -> str:
    """The rows of a report as lines to print, the largest sources first."""
    width = max(len(row["tokenizer"]) for row in report["tokenizers"])
    lines = [f"  {'tokenizer':<{max(width, 9)}}  bytes/token  unused  texts changed  vocabulary"]
    for row in report["tokenizers"]:
        numbers = f"{row['bytes_per_token']:>11.3f}  {row['unused_share']:>6.1%}  {row['differ']:>13,}"
        lines.append(f"  {row['tokenizer']:<{max(width, 9)}}  {numbers}  {row['vocab_size']:>10,}")
    for what in ("source", "language"):
        for row in report[f"by_{what}"][:12]:
            cells = ", ".join(f"{each['tokenizer']} {row[each['tokenizer']]:.3f}" for each in report["tokenizers"])
            lines.append(f"  {what} {row[what] or '(none)'}: {cells}")
    return "\n".join(lines)


def _by(what: str, tallies: list[_Tally], sizes: Counter, counts: Counter) -> list[dict]:
    return [
        {
            what: value,
            "documents": counts[value],
            "bytes": size,
            **{tally.name: size / max(tally.tokens[what][value], 1) for tally in tallies},
        }
        for value, size in sorted(sizes.items(), key=lambda pair: (-pair[1], pair[0]))
    ]


def _difference(text: str, back: str) -> str:
    """The first place where two texts part, with what stands around it."""
    place = next((i for i, (a, b) in enumerate(zip(text, back, strict=False)) if a != b), min(len(text), len(back)))
    around = slice(max(0, place - 10), place + 20)
    return f"{text[around]!r} became {back[around]!r}"


def _tokens(backend: "Tokenizer", text: str) -> list[str]:
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    return [backend.decode([token]) for token in ids]
