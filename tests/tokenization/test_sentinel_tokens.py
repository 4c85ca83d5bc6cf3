import pytest
from transformers import AutoTokenizer

from hf_llm.core.errors import UserError
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.import_tokenizer import import_tokenizer
from hf_llm.tokenization.sentinel_tokens import MASK, list_denoising_tokens, require_mask_token, require_sentinels
from hf_llm.tokenization.train import TokenizerSection, special_tokens, train_tokenizer
from tests.made_up_texts import CHAT, texts

NUMBERED = list_denoising_tokens(mask=False, sentinels=1)


@pytest.fixture(scope="module")
def masked():
    return train_tokenizer(texts(), TokenizerSection(vocab_size=384), [MASK])


@pytest.fixture(scope="module")
def numbered():
    return train_tokenizer(texts(), TokenizerSection(vocab_size=448), NUMBERED)


def test_there_are_100_sentinels_or_as_many_as_the_windows_have_masked_spans():
    assert list_denoising_tokens(mask=True, sentinels=0) == [MASK]
    assert NUMBERED[0] == "<extra_id_0>" and NUMBERED[-1] == "<extra_id_99>"
    assert len(list_denoising_tokens(mask=False, sentinels=205)) == 205


def test_a_masked_models_tokenizer_has_a_mask_and_the_ends_of_texts_as_in_the_stream(masked):
    assert len(masked) == 384 and require_mask_token(masked) == masked.get_vocab()[MASK]
    end = masked.eos_token_id
    assert masked.cls_token_id == masked.sep_token_id == end
    ids = masked("river stone")["input_ids"]
    assert ids == [end, *masked.encode("river stone", add_special_tokens=False), end]
    assert masked("a", "b")["input_ids"].count(end) == 3
    filled = masked.encode(f"a{MASK} b", add_special_tokens=False)
    assert filled.count(require_mask_token(masked)) == 1
    assert set(masked("river").keys()) == {"input_ids", "attention_mask"}  # some models take no token types


def test_an_encoder_decoders_tokenizer_has_the_sentinels_in_their_order(numbered):
    assert numbered.convert_ids_to_tokens(require_sentinels(numbered)) == NUMBERED
    assert numbered("river")["input_ids"][-1] == numbered.eos_token_id
    assert numbered("river")["input_ids"][0] != numbered.eos_token_id


def test_both_chat_and_come_back_exactly_all_the_same(masked, numbered, tmp_path):
    for tokenizer in (masked, numbered):
        check_tokenizer(tokenizer)
        assert tokenizer.apply_chat_template(CHAT, tokenize=False).startswith("<|im_start|>system")
        tokenizer.save_pretrained(tmp_path)
        again = AutoTokenizer.from_pretrained(tmp_path)
        assert again("river stone")["input_ids"] == tokenizer("river stone")["input_ids"]
        assert again.mask_token_id == tokenizer.mask_token_id
        assert set(again.all_special_ids) == set(tokenizer.all_special_ids)


def test_all_of_them_are_special_tokens_and_none_is_in_a_causal_models_tokenizer(masked, numbered):
    assert masked.mask_token_id in masked.all_special_ids
    assert {*require_sentinels(numbered)} <= {*numbered.all_special_ids}
    causal = train_tokenizer(texts(), TokenizerSection(vocab_size=320))
    assert causal.convert_ids_to_tokens(range(16)) == special_tokens(0)
    assert causal.mask_token is None and causal.cls_token is None
    with pytest.raises(UserError, match=r"no mask token.*--fresh=tokenizer"):
        require_mask_token(causal)
    with pytest.raises(UserError, match=r"no sentinel tokens.*--fresh=tokenizer"):
        require_sentinels(causal)


def test_a_vocabulary_too_small_for_them_is_refused_with_one_that_is_not():
    with pytest.raises(UserError, match=r"vocab_size: 320 is too few.*<extra_id_0>.*write 436 or more"):
        train_tokenizer(texts(), TokenizerSection(vocab_size=320), NUMBERED)
    assert len(train_tokenizer(texts(), TokenizerSection(vocab_size=436), NUMBERED)) == 448


@pytest.mark.parametrize("denoising_tokens", [[MASK], NUMBERED])
def test_an_existing_tokenizer_gets_what_it_lacks_after_its_own(denoising_tokens, tmp_path):
    own = train_tokenizer(texts(), TokenizerSection(vocab_size=320))
    own.save_pretrained(tmp_path)
    used = import_tokenizer(TokenizerSection(use=str(tmp_path)), denoising_tokens)
    assert used.convert_ids_to_tokens(range(320)) == own.convert_ids_to_tokens(range(320))
    assert len(used) % 64 == 0 and {*denoising_tokens} <= {*used.get_vocab()}
    assert used.mask_token == (MASK if denoising_tokens == [MASK] else None)
    used.save_pretrained(tmp_path / "again")
    assert len(import_tokenizer(TokenizerSection(use=str(tmp_path / "again")), denoising_tokens)) == len(used)
