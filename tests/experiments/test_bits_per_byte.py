"""Bits per byte of the same text, whatever a model's tokens are."""

import math

import pyarrow
import pyarrow.parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_llm.core.manifest import write_manifest
from hf_llm.experiments.bits_per_byte import TextWindows, measure_bits_per_byte
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer
from tests.tiny_models import save_tiny_model, tiny_tokenizer

TEXTS = ["The red fox sees the crow. " * 20, "Übung macht den Meister. " * 20, "not read any more"]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "data").mkdir(parents=True)
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS}), folder / "data" / "validation-00000-of-00001.parquet")
    write_manifest(folder)
    return folder


def test_a_model_of_uniform_predictions_needs_the_bits_of_its_vocabulary(corpus, tmp_path):
    base = save_tiny_model(tmp_path / "run" / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.zeros_(model.get_input_embeddings().weight)  # all logits are zero
    model.save_pretrained(base)
    write_manifest(base)
    size = len((TEXTS[0] + TEXTS[1]).encode())
    bits = measure_bits_per_byte(base, corpus, 64, size)
    windows = (size + 2) // 64  # a token for each byte, and the ends of two texts, the first one within a window
    predicted = windows * 63
    assert bits == pytest.approx(math.log2(320) * predicted / (predicted - 1), rel=1e-5)
    assert measure_bits_per_byte(base, corpus, 64, size) == bits
    assert (tmp_path / "run" / "held_out.json").exists()


def test_another_model_is_measured_again(corpus, tmp_path):
    base = save_tiny_model(tmp_path / "run" / "base")
    write_manifest(base)
    before = measure_bits_per_byte(base, corpus, 64, 500)
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.nn.init.normal_(model.get_input_embeddings().weight)
    model.save_pretrained(base)
    write_manifest(base)
    assert measure_bits_per_byte(base, corpus, 64, 500) != before


def test_windows_hold_whole_texts_up_to_the_size_with_an_end_after_each(corpus):
    tokenizer = tiny_tokenizer()
    windows = TextWindows(corpus, tokenizer, 16, len(TEXTS[0]))
    ids = torch.cat([windows[i]["input_ids"] for i in range(len(windows))])
    assert tokenizer.decode(ids) == TEXTS[0][: len(ids)]
    assert len(ids) == len(TEXTS[0]) // 16 * 16
    assert windows.bytes_per_token == 1.0  # the end of the text is behind the last whole window


def test_the_bytes_are_those_of_the_tokens_predicted_as_in_the_evaluation(corpus, tmp_path):
    """A text of long words first and of short ones at the end, which the last window leaves out."""
    rows = ["internationalization " * 30 + "a b c d e " * 30]
    pyarrow.parquet.write_table(pyarrow.table({"text": rows}), corpus / "data" / "validation-00000-of-00001.parquet")
    tokenizer = train_tokenizer([*rows, *TEXTS] * 2, TokenizerSection(vocab_size=320), [])
    windows = TextWindows(corpus, tokenizer, 100, 10)
    labels = torch.stack([windows[i]["labels"][1:] for i in range(len(windows))])
    text_bytes = sum(len(tokenizer.decode([token], skip_special_tokens=True).encode()) for token in labels.flatten())
    assert windows.bytes_per_token == pytest.approx(text_bytes / labels.numel())
