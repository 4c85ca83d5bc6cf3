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
    for mark in MARKS:
        template = template.replace(mark, "")
    tokenizer.chat_template = template
    with pytest.raises(UserError, match=r"marks no assistant text; put \{% generation %\}"):
        check_tokenizer(tokenizer)


MARKS = ("{%- generation %}", "{%- endgeneration %}")

# The turns of stock models, in few words.
STOCK = {
    "chatml": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "gemma": (  # no system message, and the assistant is called model
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}<|im_start|>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    ),
    "mistral": (  # the end of text ends an answer, questions stand between marks that are text
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}{{ eos_token }}{% else %}[INST] "
        "{{ m.content }} [/INST]{% endif %}{% endfor %}"
    ),
    "r1": (  # a prompt opens the reasoning, which a conversation does not have
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    ),
}


@pytest.mark.parametrize("name", STOCK)
def test_the_template_of_a_stock_chat_model_needs_marks_for_sft_only(tokenizer, name):
    tokenizer.chat_template = STOCK[name]
    check_tokenizer(tokenizer, supervised=False)
    with pytest.raises(UserError, match="marks no assistant text"):
        check_tokenizer(tokenizer)


def test_a_stock_template_whose_answers_have_no_end_is_refused(tokenizer):
    tokenizer.chat_template = "{% for m in messages %}### {{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(UserError, match="ends an answer without a special token"):
        check_tokenizer(tokenizer, supervised=False)
    tokenizer.chat_template = "{{ raise_exception('never') }}"
    with pytest.raises(UserError, match="does not render a question and its answer: never"):
        check_tokenizer(tokenizer, supervised=False)


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
