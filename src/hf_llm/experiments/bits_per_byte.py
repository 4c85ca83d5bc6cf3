"""Measure bits per byte of the same held-out text for models with different tokenizers."""

import json
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from hf_llm.core.manifest import digest_of, read_manifest, write_json
from hf_llm.data.corpus.corpus_files import read_corpus_texts
from hf_llm.data.tokens.byte_lengths import bytes_behind_labels, token_byte_lengths
from hf_llm.evaluation.perplexity import score_next_tokens
from hf_llm.hardware.runtime import device_type, use_all_cores
from hf_llm.model.load import load_model, load_tokenizer
from hf_llm.tokenization.text_boundaries import encode_document

RESULT_FILE = "held_out.json"
TOKENS_PER_BATCH = 8192
BYTES_COUNTED = "of the tokens predicted"  # older results, which took the average of the text, are measured again


class TextWindows:
    """The first `min_bytes` bytes of a corpus's validation split, as windows of `window_tokens` tokens.

    Documents are whole, so it may be some more bytes. Tokens that do not fill a window at the end are dropped.
    `bytes_per_token` are those of the tokens that a model is asked to predict: all of a window but the first.
    """

    def __init__(self, corpus: Path, tokenizer: PreTrainedTokenizerBase, window_tokens: int, min_bytes: int):
        token_ids: list[int] = []
        byte_count = 0
        for text in read_corpus_texts(corpus, "validation"):
            token_ids += encode_document(tokenizer, text)
            byte_count += len(text.encode())
            if byte_count >= min_bytes:
                break

        window_count = len(token_ids) // window_tokens
        whole_windows = torch.tensor(token_ids[: window_count * window_tokens])
        self._windows = whole_windows.view(-1, window_tokens)  # (windows, tokens)
        byte_lengths = token_byte_lengths(tokenizer)
        labels = self._windows[:, 1:].flatten().numpy()
        self.bytes_per_token = bytes_behind_labels(byte_lengths, labels, byte_lengths[token_ids].sum(), byte_count)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self._windows[index], "labels": self._windows[index]}


def measure_bits_per_byte(base: Path, corpus: Path, context: int, size: int) -> float:
    """Measure bits per byte of the model in `base` on the first `size` bytes of the corpus's validation split.

    The result is stored next to `base`, and read from there as long as model, corpus and arguments are the same.
    """
    key = digest_of([read_manifest(base)["digest"], read_manifest(corpus)["digest"], context, size, BYTES_COUNTED])
    result_file = base.parent / RESULT_FILE
    if result_file.exists():
        stored = json.loads(result_file.read_text(encoding="utf-8"))
        if stored["key"] == key:
            return stored["bits_per_byte"]

    if device_type() == "cpu":
        use_all_cores()
    model = load_model(base).to(device_type())
    windows = TextWindows(corpus, load_tokenizer(base), context, size)
    batch_size = max(1, TOKENS_PER_BATCH // context)
    bits_per_byte = score_next_tokens(model, windows, batch_size)["bits_per_byte"]
    write_json(result_file, {"key": key, "bits_per_byte": bits_per_byte, "bytes": size})
    return bits_per_byte
