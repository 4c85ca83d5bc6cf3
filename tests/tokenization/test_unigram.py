import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from hf_llm.core.errors import UserError
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.train import TokenizerSection, special_tokens, train_tokenizer
from tests.made_up_texts import texts

pytest.importorskip("sentencepiece")
DATA = os.environ.get("HF_LLM_DATA")


def learn(texts, vocab_size=512, **settings):
    return train_tokenizer(texts, TokenizerSection(vocab_size=vocab_size, algorithm="unigram", **settings))


@pytest.fixture(scope="module")
def tokenizer():
    return learn(texts())


def test_the_vocabulary_begins_with_the_special_tokens_and_the_bytes(tokenizer):
    assert len(tokenizer) == 512
    assert tokenizer.convert_ids_to_tokens(range(16)) == special_tokens(0)
    assert tokenizer.convert_ids_to_tokens([16, 16 + 255]) == ["<0x00>", "<0xFF>"]
    check_tokenizer(tokenizer)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "   leading and trailing   ",
        "naïve 数字 🙂 \x00\x7f",
        "\t\tx = [1,\n\n\n  2]  \n",
        "\ufffd\u200b\ufeff",
        "a<|endoftext|>b <0x41> <0x0A>",
        "e\u0301 ﬁ ① \u00a0",
        "U+2581 is \u2581, and \u2585 and \ue009 are not special",
    ],
)
def test_every_text_comes_back_exactly(tokenizer, text):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode(text, add_special_tokens=False).ids
    backend.encode_special_tokens = False
    assert backend.decode(ids, skip_special_tokens=False) == text
    assert not set(ids) & set(range(16))


def test_digits_stand_alone_and_white_space_together():
    tokenizer = learn([f"in {year} and {year} there were\n            some" for year in range(1900, 2024)] + texts())
    assert [tokenizer.decode(i) for i in tokenizer.encode("1999")] == ["1", "9", "9", "9"]
    assert [tokenizer.decode(i) for i in tokenizer.encode("\n            some")][:2] == ["\n", " " * 11]
    tabs = learn(["\t\tif x:\n\t\t\treturn y\n"] * 50 + texts())
    assert any("\t" in token for token in tabs.get_vocab())


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.all_special_ids == tokenizer.all_special_ids
    for text in (*texts()[:20], "  数字\n\n\tx  "):
        assert loaded.encode(text) == tokenizer.encode(text) and loaded.decode(loaded.encode(text)) == text


def test_the_same_text_gives_the_same_tokenizer_in_every_process(tokenizer):
    code = (
        "import sys, hashlib; sys.path[:0] = sys.argv[1:]; from tests.tokenization.test_unigram import learn, texts;"
        "print(hashlib.sha256(learn(texts()).backend_tokenizer.to_str().encode()).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parents[2])]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONHASHSEED": "1"}, check=True, capture_output=True, text=True
    )
    here = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    assert done.stdout.split()[-1] == here


def test_a_vocabulary_too_small_or_too_large_is_an_error_with_the_remedy():
    with pytest.raises(UserError, match="the letters of the text alone are") as error:
        learn(["".join(map(chr, range(0x4E00, 0x4E00 + 200)))] * 9, vocab_size=320)
    assert "make it larger" in str(error.value)
    with pytest.raises(UserError, match=r"too small for a vocabulary of 32,768: .* write tokenizer\.vocab_size=") as e:
        learn(texts(), vocab_size=32768)
    largest = int(str(e.value).partition("vocab_size=")[2].split()[0])
    assert len(learn(texts(), vocab_size=largest)) == largest


@pytest.mark.skipif(not DATA, reason="HF_LLM_DATA is not set")
def test_real_text_comes_back_exactly_and_shorter_than_its_bytes():
    train = (Path(DATA) / "wikitext2/valid.txt").read_text("utf-8")[:400_000]
    held_out = [
        (Path(DATA) / name).read_text("utf-8", errors="ignore")[:200_000]
        for name in ("gutenberg/alice_pg11.txt", "enwik/enwik5", "bleu_wmt17/reference.de")
    ] + [Path(__file__).read_text("utf-8")]
    tokenizer = learn(train.splitlines(keepends=True), vocab_size=4096)
    for text in held_out:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(held_out[0].encode()) / len(tokenizer.encode(held_out[0])) > 2.2
