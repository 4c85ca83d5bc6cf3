"""Tokens, models and tokenizers that do not belong together are refused, both named."""

import json

import pytest
from transformers import AutoTokenizer

from hf_llm.core.errors import UserError
from hf_llm.core.manifest import file_digest
from hf_llm.pipeline.tokens_folder import find_tokenizer, read_index, require_tokenizer
from hf_llm.tokenization.compare_tokenizers import (
    check_ids_fit,
    check_shards_tokenizer,
    check_start_tokenizer,
    find_difference,
)
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer
from tests.made_up_texts import texts
from tests.odd_tokenizers import BEGIN, with_boundaries, with_other_words, with_unused_ids


def saved(tokenizer, folder):
    """The tokenizer as read from a folder, whose name it then has."""
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def ours(tmp_path):
    return saved(train_tokenizer(texts(), TokenizerSection(vocab_size=320)), tmp_path / "ours")


@pytest.fixture
def shards(tmp_path, ours):
    """A folder of tokens that `ours` made; its index is all that is read here."""
    folder = tmp_path / "run/tokens"
    folder.mkdir(parents=True)
    digest = file_digest(tmp_path / "ours/tokenizer.json")
    index = {"vocab_size": 320, "eos_token_id": 1, "prefix": [], "tokenizer": digest, "splits": {}}
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_tokenizers_agree_where_one_has_more_special_tokens(ours):
    more = AutoTokenizer.from_pretrained(ours.name_or_path)
    more.add_special_tokens({"extra_special_tokens": ["<|tool|>"]}, replace_extra_special_tokens=False)
    assert find_difference(ours, more) is None and find_difference(more, ours) is None


def test_a_reserved_token_may_have_got_a_name(ours, tmp_path):
    text = (tmp_path / "ours/tokenizer.json").read_text().replace("<|reserved_5|>", "<|tool|>")
    (tmp_path / "renamed").mkdir()
    for file in (tmp_path / "ours").iterdir():
        (tmp_path / "renamed" / file.name).write_text(file.read_text().replace("<|reserved_5|>", "<|tool|>"))
    assert "<|tool|>" in text
    assert find_difference(ours, AutoTokenizer.from_pretrained(tmp_path / "renamed")) is None


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (with_other_words, " one "),
        (lambda: with_unused_ids(100), "in one and"),
        (lambda: train_tokenizer(texts(), TokenizerSection(vocab_size=384)), "only one has the token"),
    ],
    ids=["same size", "ids moved", "larger"],
)
def test_another_vocabulary_is_a_difference(ours, make, words):
    assert words in find_difference(ours, make()) and words in find_difference(make(), ours)


def test_another_way_to_split_words_is_a_difference(ours, tmp_path):
    state = json.loads(ours.backend_tokenizer.to_str())
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{N}{1,3}|[^\p{N}]"
    for file in (tmp_path / "ours").iterdir():
        (tmp_path / "split").mkdir(exist_ok=True)
        (tmp_path / "split" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "split/tokenizer.json").write_text(json.dumps(state))
    assert "split" in find_difference(ours, AutoTokenizer.from_pretrained(tmp_path / "split"))


def test_shards_are_read_by_the_tokenizer_that_made_them(ours, shards, tmp_path):
    check_shards_tokenizer(shards, ours, "pretrain.tokens")  # the file's digest is in the index
    state = json.loads((tmp_path / "ours/tokenizer.json").read_text())
    same = tmp_path / "same"
    ours.save_pretrained(same)
    (same / "tokenizer.json").write_text(json.dumps(state, indent=1))  # other bytes, the same tokenizer
    ours.save_pretrained(shards / "tokenizer")
    check_shards_tokenizer(shards, AutoTokenizer.from_pretrained(same), "pretrain.tokens")


@pytest.mark.parametrize("copy", ["inside", "beside", "nowhere"])
def test_shards_of_another_tokenizer_of_the_same_size_are_refused(ours, shards, tmp_path, copy):
    place = {"inside": shards / "tokenizer", "beside": shards.parent / "tokenizer", "nowhere": None}[copy]
    if place:
        ours.save_pretrained(place)
        assert find_tokenizer(shards) == place == require_tokenizer(shards)
    else:
        with pytest.raises(UserError, match=r"neither in it nor beside it; name its folder in pretrain\.tokenizer"):
            require_tokenizer(shards)
    other = saved(with_other_words(), tmp_path / "other")
    assert len(other) == len(ours)
    with pytest.raises(UserError) as error:
        check_shards_tokenizer(shards, other, "pretrain.tokens")
    assert str(shards) in str(error.value) and str(tmp_path / "other") in str(error.value)
    assert not place or str(place) in str(error.value)


def test_a_tokenizer_beside_the_shards_that_was_made_again_is_not_theirs(shards):
    with_other_words().save_pretrained(shards.parent / "tokenizer")
    assert find_tokenizer(shards) is None


def test_shards_without_what_the_tokenizer_puts_before_a_text_are_refused(shards, tmp_path):
    begins = saved(with_boundaries((BEGIN,), ()), tmp_path / "begins")
    index = {**read_index(shards), "tokenizer": file_digest(tmp_path / "begins/tokenizer.json")}
    (shards / "index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"before every text, and .*tokens has \[\] before its documents"):
        check_shards_tokenizer(shards, begins, "pretrain.tokens")
    (shards / "index.json").write_text(json.dumps({**index, "prefix": [4]}))
    check_shards_tokenizer(shards, begins, "pretrain.tokens")


def test_an_index_without_a_digest_is_checked_by_its_sizes(shards, ours):
    index = read_index(shards)
    del index["tokenizer"], index["prefix"]
    (shards / "index.json").write_text(json.dumps(index))
    check_shards_tokenizer(shards, ours, "pretrain.tokens")
    for wrong in ({"vocab_size": 321}, {"eos_token_id": 2}):
        (shards / "index.json").write_text(json.dumps({**index, **wrong}))
        with pytest.raises(UserError, match="another tokenizer"):
            check_shards_tokenizer(shards, ours, "pretrain.tokens")


def test_a_model_of_another_tokenizer_is_no_start(ours, tmp_path, capsys):
    saved(train_tokenizer(texts(), TokenizerSection(vocab_size=320)), tmp_path / "base")
    check_start_tokenizer(tmp_path / "base", ours, "pretrain.start_from")
    for name, other in (("words", with_other_words()), ("begins", with_boundaries((BEGIN,), ()))):
        saved(other, tmp_path / name)
        with pytest.raises(UserError) as error:
            check_start_tokenizer(tmp_path / name, ours, "pretrain.start_from")
        assert str(tmp_path / name) in str(error.value) and ours.name_or_path in str(error.value)
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare/config.json").write_text('{"model_type": "llama"}')
    check_start_tokenizer(tmp_path / "bare", ours, "pretrain.start_from")
    assert "bare has no tokenizer; it is taken to be that of" in capsys.readouterr().out


def test_ids_beyond_the_model_are_refused(ours):
    check_ids_fit(ours, 320, "sft.model")
    with pytest.raises(UserError, match="ids up to 319, and the model 319 rows"):
        check_ids_fit(ours, 319, "sft.model")
