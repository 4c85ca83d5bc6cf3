"""What a tokenizer puts around a text is the same in shards, documents, prompts and the saved folder."""

from itertools import chain

import numpy as np
import pytest
from transformers import AutoTokenizer

from hf_llm.data.tokens.token_shards import Documents, tokenize_documents
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.import_tokenizer import import_tokenizer
from hf_llm.tokenization.sentinel_tokens import list_denoising_tokens
from hf_llm.tokenization.text_boundaries import document_prefix, encode_document, encode_prompt, text_boundaries
from hf_llm.tokenization.train import END_OF_TEXT, TokenizerSection
from tests.made_up_texts import CHAT, texts
from tests.odd_tokenizers import BEGIN, with_boundaries

BOUNDARIES = {
    "none": ((), ()),
    "begin": ((BEGIN,), ()),
    "end": ((), (END_OF_TEXT,)),
    "both": ((BEGIN,), (END_OF_TEXT,)),
    "two before": ((BEGIN, "<|reserved_1|>"), ()),
    "begin is end": ((END_OF_TEXT,), ()),
    "another end": ((), ("<|reserved_2|>", END_OF_TEXT)),
}


@pytest.fixture(params=BOUNDARIES, name="case")
def case_of(request, tmp_path):
    """The tokens before a text, and the run's tokenizer as it is read back from its folder."""
    before, after = BOUNDARIES[request.param]
    with_boundaries(before, after).save_pretrained(tmp_path / "theirs")
    import_tokenizer(TokenizerSection(use=str(tmp_path / "theirs"))).save_pretrained(tmp_path / "ours")
    return before, AutoTokenizer.from_pretrained(tmp_path / "ours")


def shard_of(tokenizer, written):
    """The tokens of these texts, as shards hold them."""
    batches = tokenize_documents(
        [Documents.from_texts(written[:3]), Documents.from_texts(written[3:])],
        tokenizer.backend_tokenizer,
        tokenizer.eos_token_id,
        np.dtype(np.uint16),
        document_prefix(tokenizer),
    )
    return list(batches)


def test_a_shard_holds_what_the_saved_tokenizer_gives(case):
    _, tokenizer = case
    written = ["", *texts(4), "🙂"]
    ends = [tokenizer.eos_token_id]
    expected = [[token for token in tokenizer(text)["input_ids"] if token not in ends] + ends for text in written]
    ids = []
    for documents, tokens in shard_of(tokenizer, written):
        assert tokens.lengths.sum() == len(tokens.ids) and len(tokens.lengths) == len(documents.texts)
        ids += tokens.ids.tolist()
    assert ids == list(chain(*expected))
    assert ids == list(chain(*(encode_document(tokenizer, text) for text in written)))
    assert ids.count(tokenizer.eos_token_id) == len(written)


def test_a_prompt_begins_as_a_document_and_has_not_ended(case):
    before, tokenizer = case
    prefix = tokenizer.convert_tokens_to_ids(list(before))
    assert text_boundaries(tokenizer) == (prefix, [])
    prompt = encode_prompt(tokenizer, "The river", 100)
    assert prompt == tokenizer("The river")["input_ids"] == [*prefix, *prompt[len(prefix) :]]
    assert prompt[-1] != tokenizer.eos_token_id
    assert encode_prompt(tokenizer, "", 100) == (prefix or [tokenizer.eos_token_id])
    assert encode_prompt(tokenizer, "x" * 300, 10)[: len(prefix)] == prefix
    assert len(encode_prompt(tokenizer, "x" * 300, 10)) == 10
    assert encode_prompt(tokenizer, "".join(before) + "The river", 100) == prompt  # not twice


def test_a_chat_begins_as_a_document(case):
    before, tokenizer = case
    check_tokenizer(tokenizer)
    rendered = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert rendered.startswith("".join(before) + "<|im_start|>system")


def test_what_ends_every_text_is_told(tmp_path, capsys):
    with_boundaries((), (END_OF_TEXT,)).save_pretrained(tmp_path / "ends")
    import_tokenizer(TokenizerSection(use=str(tmp_path / "ends")))
    assert f"ends puts {END_OF_TEXT} after every text, so also after a prompt" in capsys.readouterr().out


@pytest.mark.parametrize("is_masked", [True, False], ids=["masked", "spans"])
@pytest.mark.parametrize("name", ["none", "begin", "end", "both"])
def test_a_model_that_sees_whole_texts_sees_their_ends(tmp_path, name, is_masked):
    before, after = BOUNDARIES[name]
    with_boundaries(before, after).save_pretrained(tmp_path / "theirs")
    denoising_tokens = list_denoising_tokens(mask=is_masked, sentinels=0 if is_masked else 3)
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "theirs")), denoising_tokens)
    starts, ends = text_boundaries(tokenizer)
    assert ends == [tokenizer.eos_token_id]
    ours = [END_OF_TEXT] if is_masked and name == "none" else list(before)
    assert tokenizer.convert_ids_to_tokens(starts) == ours
    stream = [token for text in texts(3) for token in encode_document(tokenizer, text)]
    one_after_another = [token for text in texts(3) for token in tokenizer(text)["input_ids"]]
    if ours == [END_OF_TEXT]:  # the end of the text before stands there already
        one_after_another = [token for text in texts(3) for token in tokenizer(text)["input_ids"][1:]]
    assert stream == one_after_another


def test_a_tokenizer_of_bert_or_roberta_ends_a_text_by_its_own_token(tmp_path):
    backend = with_boundaries(("<|reserved_3|>",), ("<|reserved_4|>",))
    backend.eos_token = None
    backend.save_pretrained(tmp_path / "bert")
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "bert")), list_denoising_tokens(True, 0))
    assert tokenizer.eos_token == "<|reserved_4|>"
    ids = encode_document(tokenizer, "a")
    assert ids == tokenizer("a")["input_ids"] and tokenizer.decode(ids) == "<|reserved_3|>a<|reserved_4|>"
