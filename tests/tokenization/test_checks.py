import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_llm.core.errors import UserError
from hf_llm.tokenization.checks import check_tokenizer, supervised_ids
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

TEXTS = [
    "Some sentences about ordinary things, enough of them to find a few pairs of letters that stand together often.",
    "Another sentence: the others were not enough, and the pairs that stand there are found in these words again.",
]


@pytest.fixture
def tokenizer():
    return train_tokenizer(TEXTS * 20, TokenizerSection(vocab_size=320))


def test_our_own_tokenizer_is_fit_for_a_chat_model(tokenizer):
    check_tokenizer(tokenizer)


def test_padding_that_is_the_end_of_text_is_refused(tokenizer):
    tokenizer.pad_token = tokenizer.eos_token
    with pytest.raises(UserError, match="never stop; add a token of its own"):
        check_tokenizer(tokenizer)


def test_a_tokenizer_without_an_end_of_text_is_refused(tokenizer):
    tokenizer.eos_token = None
    with pytest.raises(UserError, match="no eos_token"):
        check_tokenizer(tokenizer)


def test_a_tokenizer_that_takes_text_for_its_end_is_refused():
    from tokenizers import Tokenizer, models, pre_tokenizers

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "</s>": 1, "?": 2}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="<pad>")
    with pytest.raises(UserError, match="takes the letters '</s>' in a text for the end of text"):
        check_tokenizer(tokenizer)


def test_a_missing_template_is_refused_for_a_chat_model_only(tokenizer):
    tokenizer.chat_template = None
    check_tokenizer(tokenizer, chat=False)
    with pytest.raises(UserError, match="has no chat template"):
        check_tokenizer(tokenizer)


def test_a_template_that_marks_nothing_is_refused(tokenizer):
    template = tokenizer.chat_template
    for mark in ("{%- generation %}", "{%- endgeneration %}"):
        template = template.replace(mark, "")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"marks no assistant text; put \{% generation %\}"):
        check_tokenizer(tokenizer)


def test_a_template_that_does_not_teach_the_end_of_turn_is_refused(tokenizer):
    marked = "{{- said(message) }}{%- endgeneration %}"
    assert marked in tokenizer.chat_template
    tokenizer.chat_template = tokenizer.chat_template.replace(
        marked, "{{- message.content }}{%- endgeneration %}{{- '<|im_end|>' }}"
    )
    with pytest.raises(UserError, match="ends before the end-of-turn token"):
        check_tokenizer(tokenizer)


def test_a_prompt_rendered_otherwise_than_in_training_is_refused(tokenizer):
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "'<|im_start|>assistant\\n' }}\n{%- endif", "'<|im_start|>assistant: ' }}\n{%- endif"
    )
    with pytest.raises(UserError, match="not the start of the whole conversation"):
        check_tokenizer(tokenizer)


def test_a_tokenizer_that_loses_text_is_refused():
    lossy = Tokenizer(models.WordLevel({"<unk>": 0, "<eos>": 1, "<pad>": 2}, unk_token="<unk>"))
    lossy.normalizer = normalizers.Lowercase()
    lossy.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=lossy, eos_token="<eos>", pad_token="<pad>")
    with pytest.raises(UserError, match="does not give back"):
        check_tokenizer(tokenizer, chat=False)


def test_what_is_supervised_is_the_answer_and_its_end(tokenizer):
    chat = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "Yes."}]
    ids, covered = supervised_ids(tokenizer, chat)
    assert tokenizer.decode(covered) == "Yes.<|im_end|>" and len(ids) > len(covered)
