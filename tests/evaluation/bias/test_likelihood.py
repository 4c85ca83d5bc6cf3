"""Log-likelihoods against the harness's own, and pseudo-log-likelihoods against the definition."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, PreTrainedTokenizerFast

from hf_llm.evaluation.bias.likelihood import (
    batch_by_length,
    encode_continuation,
    encode_text,
    find_shared_tokens,
    is_cut,
    score_continuations,
    score_shared_tokens,
)
from tests.evaluation.evaluated import CONTEXT, save_model

TEXTS = ["A cat lives here.", "x", "A much longer sentence, of a dog and of a cat, " * 3, "Ein schöner Tag"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def masked():
    """A BERT over words of letters, and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    tokens = {f"{key}_token": value for key, value in names.items()}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **tokens)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=12, initializer_range=0.5, **sizes)
    return BertForMaskedLM(config).eval(), tokenizer


def score_by_definition(model, continuation):
    ids = [*continuation.context, *continuation.text]
    with torch.no_grad():
        log_probs = model.model(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
    places = range(len(continuation.context) - 1, len(ids) - 1)
    return sum(log_probs[place, ids[place + 1]].item() for place in places)


def test_a_batch_has_the_log_likelihoods_of_its_texts(model):
    continuations = [encode_text(model.tokenizer, text) for text in TEXTS]
    continuations += [encode_continuation(model.tokenizer, "A cat", text) for text in TEXTS]
    scores = score_continuations(model.model, continuations, model.context)
    assert scores == pytest.approx([score_by_definition(model, each) for each in continuations], abs=1e-4)


def test_log_likelihoods_are_those_of_the_harness(model):
    harness = pytest.importorskip("lm_eval.models.huggingface")
    instance = pytest.importorskip("lm_eval.api.instance").Instance
    stock = harness.HFLM(pretrained=model.model, tokenizer=model.tokenizer, batch_size=2)
    long_context = "A cat of many lives: " * 20 + "It"  # the harness cuts it too; a text so long it refuses
    pairs = [(context, f" {text}") for context in ("", "A cat:", long_context) for text in [*TEXTS, "z" * 240]]
    requests = [instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    expected = [score for score, _ in stock.loglikelihood(requests, disable_tqdm=True)]

    continuations = []
    for context, text in pairs:
        encoded = encode_continuation(model.tokenizer, context, text) if context else encode_text(model.tokenizer, text)
        continuations.append(encoded)
    assert score_continuations(model.model, continuations, model.context) == pytest.approx(expected, abs=1e-3)
    assert [is_cut(each, CONTEXT) for each in continuations] == [len(c) + len(t) > CONTEXT for c, t in pairs]


def test_batches_hold_all_texts_and_no_more_tokens_than_said():
    lengths = [3, 50, 7, 7, 1, 20, 120, 9]
    batches = list(batch_by_length(lengths, 40))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[index] for index in batch) <= 40


def test_shared_tokens_are_those_of_the_longest_blocks():
    assert find_shared_tokens([2, 5, 6, 7, 3], [2, 5, 9, 7, 3]) == ([0, 1, 3, 4], [0, 1, 3, 4])
    assert find_shared_tokens([1, 2, 3], [1, 8, 9, 2, 3]) == ([0, 1, 2], [0, 3, 4])


def test_a_shared_token_is_predicted_with_it_alone_hidden(masked):
    model, tokenizer = masked
    first, second = "a b c d", "a e f c d"
    ids = tokenizer(first)["input_ids"]
    expected = 0.0
    for place in (1, 3, 4):  # a, c and d; the special tokens at both ends are shared too and do not count
        hidden = torch.tensor([ids])
        hidden[0, place] = tokenizer.mask_token_id
        with torch.no_grad():
            expected += model(input_ids=hidden).logits[0, place].double().log_softmax(-1)[ids[place]].item()
    scores = score_shared_tokens(model, tokenizer, first, second, 12)
    assert scores[0] == pytest.approx(expected, abs=1e-5)
    assert scores[1] != pytest.approx(expected, abs=1e-3)
