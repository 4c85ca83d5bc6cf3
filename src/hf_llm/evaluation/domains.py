"""Score how well a model predicts text of each domain: the sources of a corpus, and texts that a recipe names."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

    from hf_llm.evaluation.evaluated_model import EvaluatedModel

TOKENS_PER_BATCH = 8192
MAX_CHARS = 1 << 20  # of one piece of a text file


@dataclass
class TextDomain:
    """One entry of `evaluate.domains`: text of one kind that no model of the run was trained on."""

    name: str
    """What its scores are called."""
    path: str
    """A text file, a file of rows (JSON lines, CSV, Parquet), a folder of such files or a glob pattern."""
    column: str = "text"
    """The column that holds the text, in a file of rows."""


@dataclass
class DomainTexts:
    """The texts of a domain, as many as are read, and what could not be read."""

    texts: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)
    """What was not read, counted by reason."""


def read_domain(domain: TextDomain) -> DomainTexts:
    """Read the texts of a domain. Raises UserError where there are none."""
    from hf_llm.data.files.file_formats import FORMATS, find_files, resolve_format
    from hf_llm.data.files.read_errors import ReadErrors
    from hf_llm.data.files.tabular import get_column, read_rows
    from hf_llm.data.files.text_files import read_text_documents

    errors = ReadErrors()
    texts: list[str] = []
    for path, name in find_files(domain.path, FORMATS["text"] | FORMATS["rows"], errors=errors):
        content = resolve_format(path, None)
        if content.format == "text":
            texts += read_text_documents(path, MAX_CHARS, errors)
        elif content.format == "rows":
            for _, row in read_rows(path, errors, column=domain.column):
                text = get_column(row, domain.column, name)
                if isinstance(text, str) and text.strip():
                    texts.append(text)
                else:
                    errors.leave_out("no text", name)
        else:
            errors.leave_out(f"{content.kind}, not text and not rows", name)
    if not texts:
        raise UserError(f"evaluate.domains: {domain.name}: {domain.path} holds no text")
    return DomainTexts(texts, dict(errors.dropped + errors.left_out))


def read_corpus_domains(corpus: Path, max_bytes: int) -> dict[str, DomainTexts]:
    """Read the test split of a finished corpus by source, of each at most about `max_bytes` bytes of text."""
    import pyarrow.parquet

    from hf_llm.core.atomic_io import ROW_GROUP
    from hf_llm.data.corpus.corpus_files import list_corpus_files

    domains: dict[str, DomainTexts] = {}
    sizes: dict[str, int] = {}
    for path in list_corpus_files(corpus, "test"):
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=ROW_GROUP, columns=["source", "text"]):
                for source, text in zip(batch["source"].to_pylist(), batch["text"].to_pylist(), strict=True):
                    if sizes.get(source, 0) < max_bytes:
                        domains.setdefault(source, DomainTexts()).texts.append(text)
                        sizes[source] = sizes.get(source, 0) + len(text.encode())
    return domains


class TextWindows:
    """Texts as windows of at most `length` tokens: documents one after the other, as a training reads them.

    Of texts that fill less than one window there is one short window, else what is left at the end is not scored.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str], length: int, max_tokens: int):
        from hf_llm.data.tokens.byte_lengths import token_byte_lengths

        ids: list[int] = []
        text_bytes = 0
        for document, size in _encode(tokenizer, texts):
            ids += document
            text_bytes += size
            if len(ids) >= max_tokens:
                break

        # Where the lengths of the tokens do not add up to the bytes of the text, as with a tokenizer that normalises
        # it, all are scaled alike.
        lengths = token_byte_lengths(tokenizer)
        scale = text_bytes / max(lengths[ids].sum(), 1)

        windows = max(1, min(len(ids), max_tokens) // length)
        self.ids = np.array(ids[: windows * length], np.int64)
        self.length = min(length, len(self.ids))
        self.tokens = len(self.ids)
        is_predicted = np.arange(self.tokens) % self.length > 0
        self.bytes_per_token = float(lengths[self.ids[is_predicted]].mean() * scale) if is_predicted.any() else 0.0

    def __len__(self) -> int:
        return self.tokens // self.length

    def __getitem__(self, index: int) -> dict[str, "torch.Tensor"]:
        import torch

        ids = torch.from_numpy(self.ids[index * self.length : (index + 1) * self.length])
        return {"input_ids": ids, "labels": ids.clone()}


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: Iterable[str]) -> Iterator[tuple[list[int], int]]:
    """Yield the ids of each text as a document, with the bytes of the text."""
    from hf_llm.tokenization.text_boundaries import encode_document

    for text in texts:
        yield encode_document(tokenizer, text), len(text.encode())


def score_domain(evaluated: "EvaluatedModel", domain: DomainTexts, max_tokens: int) -> dict[str, Any]:
    """Score the next-token loss of a causal model on a domain, as `score_next_tokens` does, with what was left out.

    `max_tokens` is how many tokens are read at most.
    """
    from hf_llm.evaluation.perplexity import score_next_tokens

    windows = TextWindows(evaluated.tokenizer, domain.texts, evaluated.context, max_tokens)
    if windows.length < 2:
        raise UserError("the domain has a single token; nothing can be predicted")
    batch_size = max(1, TOKENS_PER_BATCH // windows.length)
    scores = score_next_tokens(evaluated.model, windows, batch_size)
    return {**scores, "left_out": domain.left_out} if domain.left_out else scores
