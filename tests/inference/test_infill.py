import pytest
import torch

from hf_llm.data.tokens.corruption import restore_spans
from hf_llm.inference.generate import complete_prompts, suppressed_ids
from hf_llm.inference.infill import complete_or_infill, infill_texts
from hf_llm.model.load import build_model
from hf_llm.tokenization.sentinel_tokens import list_denoising_tokens, require_sentinels
from tests.tiny_models import tiny_tokenizer

BERT = {"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"model_type": "t5", "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}


@pytest.fixture
def masked():
    """A model that puts an `x` in every place."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"mask_token": "<|mask|>"})
    torch.manual_seed(0)
    model = build_model(BERT, tokenizer, 32)
    model.cls.predictions.decoder.bias.data[tokenizer.encode("x")] = 100
    return model, tokenizer


def test_each_mask_becomes_the_likeliest_token_and_all_else_stays(masked):
    texts = ["a <|mask|> in <|mask|>", "<|mask|>"]
    assert infill_texts(*masked, texts, 8) == ["a x in x", "x"]


def test_a_text_without_a_gap_gets_one_at_its_end(masked):
    assert infill_texts(*masked, ["the fox"], 8) == ["the fox x"]


def test_a_text_longer_than_the_context_is_filled_as_far_as_it_is_seen(masked):
    (filled,) = infill_texts(*masked, ["<|mask|>" + "b" * 40], 8)
    assert filled == "x" + "b" * 31


def test_the_models_mode_is_restored(masked):
    for training in (True, False):
        masked[0].train(training)
        infill_texts(*masked, ["a"], 8)
        assert masked[0].training is training


@pytest.fixture
def encoder_decoder():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": list_denoising_tokens(mask=False, sentinels=1)})
    torch.manual_seed(0)
    return build_model(T5, tokenizer, 32), tokenizer


def test_what_the_decoder_writes_stands_in_the_place_of_its_sentinel(encoder_decoder):
    _, tokenizer = encoder_decoder
    text = tokenizer.encode("the <extra_id_0> fox sees <extra_id_1>.")
    target = tokenizer.encode("<extra_id_0>red<extra_id_1>a hen")
    assert tokenizer.decode(restore_spans(text, target, require_sentinels(tokenizer))) == "the red fox sees a hen."


def test_a_new_encoder_decoder_writes_something_and_stops(encoder_decoder):
    (filled,) = infill_texts(*encoder_decoder, ["a <extra_id_0> b"], 4)
    assert filled.startswith("a ") and filled.endswith(" b")


def test_a_causal_model_completes_the_prompt_instead():
    tokenizer = tiny_tokenizer()
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = build_model(sizes, tokenizer, 64)
    assert complete_or_infill(model, tokenizer, ["ab"], 5) == complete_prompts(
        model, tokenizer, ["ab"], 5, do_sample=False
    )


def test_no_gap_is_filled_by_an_id_without_a_token(masked, encoder_decoder):
    model, tokenizer = masked
    assert model.config.vocab_size > len(tokenizer)
    model.cls.predictions.decoder.bias.data[len(tokenizer) :] = 200
    assert infill_texts(model, tokenizer, ["a <|mask|> in"], 8) == ["a x in"]

    model, tokenizer = encoder_decoder
    unused = list(range(len(tokenizer), model.config.vocab_size))
    assert unused and suppressed_ids(model, tokenizer) == unused
