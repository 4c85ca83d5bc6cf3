"""Padding with a token of its own, for tokenizers made as those of well-known models are."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_llm.model.load import load_tokenizer
from hf_llm.tokenization.padding import give_padding

CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
LLAMA = "<|begin_of_text|>{% for m in messages %}<|header|>{{ m.role }}\n{{ m.content }}<|eot_id|>{% endfor %}"
ZEPHYR = "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}{{ eos_token }}\n{% endfor %}"


def tokenizer_with(specials, template, **named):
    vocabulary = {character: number for number, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": specials})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize(
    ("specials", "template", "named", "padding"),
    [
        pytest.param(
            ["<|begin_of_text|>", "<|header|>", "<|eot_id|>", "<|reserved_0|>", "<|finetune_right_pad_id|>"],
            LLAMA, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, "<|finetune_right_pad_id|>",
            id="llama 3.1, without padding",
        ),
        pytest.param(
            ["<|begin_of_text|>", "<|header|>", "<|eot_id|>", "<|end_of_text|>", "<|reserved_0|>"],
            LLAMA, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}, "<|reserved_0|>",
            id="llama 3, with reserved tokens alone",
        ),
        pytest.param(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            CHATML, {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"},
            "<|endoftext|>", id="smollm2, whose padding ends a turn",
        ),
        pytest.param(
            ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML,
            {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}, "<|endoftext|>", id="qwen, which has its own",
        ),
        pytest.param([], ZEPHYR, {"eos_token": "</s>"}, "</s>", id="none to spare"),
        pytest.param([], None, {"eos_token": "<|endoftext|>"}, "<|endoftext|>", id="gpt2"),
    ],
)  # fmt: skip
def test_a_tokenizer_pads_with_a_token_that_nothing_else_uses(specials, template, named, padding, tmp_path):
    tokenizer = tokenizer_with(specials, template, **named)
    vocabulary = dict(tokenizer.get_vocab())
    give_padding(tokenizer)
    assert tokenizer.pad_token == padding
    assert tokenizer.get_vocab() == vocabulary

    tokenizer_with(specials, template, **named).save_pretrained(tmp_path)
    assert load_tokenizer(tmp_path).pad_token == padding
