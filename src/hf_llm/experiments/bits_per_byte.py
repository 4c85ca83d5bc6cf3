"""Bits per byte of the same held-out text for models that do not share their tokens."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hf_llm.core.manifest import digest_of, read_manifest, write_json
from hf_llm.data.corpus.build import corpus_texts
from hf_llm.evaluation.perplexity import score
from hf_llm.hardware.runtime import device_type, use_all_cores
from hf_llm.model.load import load_model, load_tokenizer

FILE = "held_out.json"
BATCH_TOKENS = 8192


class TextWindows:
    """The first `size` bytes of a corpus's validation split (whole documents) as windows of `length` tokens.

    What is left at the end is no window; `bytes_per_token` is that of all of it.
    """

    def __init__(self, corpus: Path, tokenizer: PreTrainedTokenizerBase, length: int, size: int):
        ids, taken = [], 0
        for text in corpus_texts(corpus, "validation"):
            ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            taken += len(text.encode())
            if taken >= size:
                break
        self._windows = torch.tensor(ids[: len(ids) // length * length]).view(-1, length)
        self.bytes_per_token = taken / len(ids)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._windows[index], "labels": self._windows[index]}


def measured(base: Path, corpus: Path, context: int, size: int) -> float:
    """Bits per byte of the model in `base` on the first `size` bytes of the corpus's validation split.

    Kept beside `base`, and read from there as long as both are the same.
    """
    key = digest_of([read_manifest(base)["digest"], read_manifest(corpus)["digest"], context, size])
    file = base.parent / FILE
    if file.exists() and (kept := json.loads(file.read_text(encoding="utf-8")))["key"] == key:
        return kept["bits_per_byte"]
    if device_type() == "cpu":
        use_all_cores()
    model = load_model(base).to(device_type())
    windows = TextWindows(corpus, load_tokenizer(base), context, size)
    value = score(model, windows, max(1, BATCH_TOKENS // context))["bits_per_byte"]
    write_json(file, {"key": key, "bits_per_byte": value, "bytes": size})
    return value
