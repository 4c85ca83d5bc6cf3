import random
import re

import pytest
from transformers import AutoTokenizer

from hf_llm.core.errors import UserError
from hf_llm.tokenization.train import MAX_WORD_CHARS, TokenizerSection, _take_sample, special_tokens, train_tokenizer
from tests.made_up_texts import CHAT, texts


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(texts(), TokenizerSection(vocab_size=320))


def test_the_vocabulary_is_a_multiple_of_64_and_begins_with_the_special_tokens(tokenizer):
    assert len(tokenizer) == 320
    assert tokenizer.convert_ids_to_tokens(range(16)) == special_tokens(0)
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, None)
    rounded = train_tokenizer(texts(), TokenizerSection(vocab_size=321))
    assert len(rounded) == 384
    assert rounded.convert_ids_to_tokens(16 + 62) == "<|reserved_74|>"


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "naïve 数字 🙂 \x00\x7f",
        "\t\tx = [1,\n\n\n  2]  \n",
        "\ufffd\u200b\ufeff",
        "a<|endoftext|>b",
        "e\u0301",
    ],
)
def test_every_text_comes_back_exactly(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_nothing_is_added_to_a_text(tokenizer):
    assert tokenizer.encode("") == [] and tokenizer.eos_token_id not in tokenizer.encode("a b", add_special_tokens=True)


def test_digits_stand_alone_and_white_space_together():
    numbers = [f"in {year} and {year} there were\n            some" for year in range(1900, 2024)] + texts()
    tokenizer = train_tokenizer(numbers, TokenizerSection(vocab_size=384))
    assert [tokenizer.decode(i) for i in tokenizer.encode("1999")] == ["1", "9", "9", "9"]
    assert [tokenizer.decode(i) for i in tokenizer.encode("\n            some")][:2] == ["\n", " " * 11]


def test_the_same_text_gives_the_same_tokenizer(tokenizer, tmp_path):
    again = train_tokenizer(texts(), TokenizerSection(vocab_size=320))
    assert again.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()


def test_no_more_than_the_sample_is_read():
    read = []

    def reading():
        for text in texts():
            read.append(text)
            yield text

    train_tokenizer(reading(), TokenizerSection(vocab_size=320, sample_bytes=20_000))
    assert 20_000 <= sum(len(text) for text in read) < 40_000


def test_a_saved_tokenizer_is_the_same_and_keeps_its_template(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded.chat_template == tokenizer.chat_template
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "<|endoftext|>")
    assert loaded.encode(texts()[0]) == tokenizer.encode(texts()[0])
    assert loaded.all_special_ids == tokenizer.all_special_ids and len(loaded.all_special_ids) == 16


def test_a_chat_has_these_ids(tokenizer):
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert rendered == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nOh, hi<|im_end|>\n"
        "<|im_start|>user\n1+2?<|im_end|>\n<|im_start|>assistant\n3<|im_end|>\n"
    )
    short = [{"role": "user", "content": "1+2?"}, {"role": "assistant", "content": "3"}]
    ids = tokenizer.apply_chat_template(short, return_dict=True)["input_ids"]
    assert ids == [
        2, 100, 98, 272, 214, 32, 26, 33, 46, 3, 214, 2, 80, 98, 98, 88, 98, 99, 80, 309, 214, 34, 3, 214,
    ]  # fmt: skip


def test_the_loss_covers_what_the_assistant_says_and_its_end(tokenizer):
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    covered = [i for i, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(covered) == "Oh, hi<|im_end|>3<|im_end|>"


def test_the_prompt_is_the_beginning_of_the_conversation(tokenizer):
    for answer in ("3", "  leading space", "\n\nblank lines"):
        chat = [*CHAT[:-1], {"role": "assistant", "content": answer}]
        prompt = tokenizer.apply_chat_template(chat[:-1], add_generation_prompt=True, return_dict=True)["input_ids"]
        whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert whole[: len(prompt)] == prompt


def test_a_vocabulary_too_large_for_the_text_names_the_largest_that_works():
    with pytest.raises(UserError, match=r"too small for a vocabulary of 32,832: .* write tokenizer\.vocab_size=") as e:
        train_tokenizer(texts(), TokenizerSection(vocab_size=32769))
    largest = int(str(e.value).partition("vocab_size=")[2].split()[0])
    assert len(train_tokenizer(texts(), TokenizerSection(vocab_size=largest))) == largest
    with pytest.raises(UserError, match="give it more text"):
        train_tokenizer(["tiny"], TokenizerSection(vocab_size=320))


def test_wrong_settings_are_refused(tmp_path):
    with pytest.raises(ValueError, match="at least 320"):
        TokenizerSection(vocab_size=300)
    with pytest.raises(UserError, match=r"missing\.jinja is neither `chatml` nor a readable file"):
        train_tokenizer(texts(), TokenizerSection(vocab_size=320, chat_template="missing.jinja"))


def test_a_template_of_ones_own_is_taken(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    section = TokenizerSection(vocab_size=320, chat_template=str(tmp_path / "mine.jinja"))
    assert train_tokenizer(texts(), section).apply_chat_template(CHAT, tokenize=False) == "Be brief."


CHINESE = "天地玄黄宇宙洪荒日月盈昃辰宿列张寒来暑往秋收冬藏闰余成岁律吕调阳云腾致雨露结为霜金生丽水玉出昆冈"
WITHOUT_SPACES = {
    "Chinese": lambda rng: "".join(rng.choices([CHINESE[i : i + 4] for i in range(0, 48, 4)], k=300)),
    "DNA": lambda rng: "".join(rng.choices(["GATTACA", "CCTGAT", "AAGGCT", "TTTCCC"], k=300)),
    "a line of signs": lambda rng: "=" * 1000 + "".join(rng.choices(["alpha", "beta", "gamma"], k=200)),
}


@pytest.mark.parametrize("algorithm", ["byte_level_bpe", "unigram"])
@pytest.mark.parametrize("kind", WITHOUT_SPACES)
def test_writing_without_spaces_is_trained_on(kind, algorithm):
    if algorithm == "unigram":
        pytest.importorskip("sentencepiece")
    rng = random.Random(0)
    written = [WITHOUT_SPACES[kind](rng) for _ in range(20)]
    tokenizer = train_tokenizer(written, TokenizerSection(vocab_size=448, algorithm=algorithm))
    held_out = WITHOUT_SPACES[kind](rng)
    assert len(held_out) > 1000
    bytes_per_token = len(held_out.encode()) / len(tokenizer.encode(held_out))
    assert bytes_per_token > 3  # without its words, every letter is a token or several
    assert tokenizer.decode(tokenizer.encode(held_out)) == held_out


@pytest.mark.parametrize("size", [1, 255, 256, 257, 512, 513, 1000])
def test_long_words_are_cut_and_nothing_is_lost(size):
    text = "ab cd " + "x" * size + "1 " + "é" * size + ", end"
    pieces = list(_take_sample([text, "more"], 10**6))
    assert "".join(pieces) == text + "more"
    words = [word for piece in pieces for word in re.findall(r"[^\W\d_]+", piece)]
    assert max(map(len, words)) <= max(5, min(size, MAX_WORD_CHARS))
    assert len(pieces) == 2 + 2 * ((size - 1) // MAX_WORD_CHARS)
