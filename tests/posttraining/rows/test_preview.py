import re

import pytest
from datasets import Dataset

from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.posttraining.rows.preview import paint_tokens, render_preview
from hf_llm.tokenization.chat_encoding import encode_chat
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer
from tests.byte_tokenizer import TEXTS


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 20, TokenizerSection(vocab_size=320))


def row(tokenizer, question, answer, source=0):
    ids, mask = encode_chat(
        tokenizer, [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    )
    labels = [token if learnt else IGNORE_INDEX for token, learnt in zip(ids, mask, strict=True)]
    return {"input_ids": ids, "labels": labels, "source": source}


def test_supervised_tokens_stand_in_brackets(tokenizer):
    made = row(tokenizer, "Hi", "the 数")
    shown = paint_tokens(made["input_ids"], made["labels"], tokenizer, colour=False)
    assert shown == "<|im_start|>user⏎\nHi<|im_end|>⏎\n<|im_start|>assistant⏎\n[th][e][ ][数][<|im_end|>]⏎\n"


def test_in_colour_the_text_is_the_same_and_supervised_tokens_have_a_background(tokenizer):
    made = row(tokenizer, "Hi", "one\ntwo")
    shown = paint_tokens(made["input_ids"], made["labels"], tokenizer, colour=True)
    bare = re.sub(r"\033\[[\d;]*m", "", shown)
    assert bare == tokenizer.decode(made["input_ids"]).replace("\n", "⏎\n")
    learnt = "".join(re.findall(r"\033\[30;48;5;\d+m(.*?)\033\[0m", shown))
    assert learnt == "one⏎two<|im_end|>"
    assert all(line.count("\033[0m") == len(re.findall(r"\033\[(?!0m)", line)) for line in shown.split("\n"))


def test_every_source_is_shown_before_another_row_of_the_first(tokenizer):
    rows = [row(tokenizer, f"first {i}", "x") for i in range(9)] + [row(tokenizer, "second", "y", source=1)]
    shown = render_preview(Dataset.from_list(rows), tokenizer, colour=False, count=3)
    assert re.findall(r"first \d|second", shown) == ["first 0", "second", "first 1"]
    assert "source 2, " in shown and "2 of them supervised" in shown
