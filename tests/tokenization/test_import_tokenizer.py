import base64
import io
import json
import os
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_llm.core.errors import UserError
from hf_llm.tokenization.checks import check_tokenizer
from hf_llm.tokenization.import_tokenizer import import_tokenizer, load_tokenizer
from hf_llm.tokenization.train import WORD_PATTERN, TokenizerSection, train_tokenizer
from tests.made_up_texts import CHAT, texts
from tests.odd_tokenizers import trained_json, with_unused_ids

DATA = os.environ.get("HF_LLM_DATA")
ODD = [
    "",
    " ",
    "  a  b ",
    "\n\nx\n",
    "\u2581a\u2581",
    "<s> </s> <unk> <0x41>",
    "\t\tif x:\r\n",
    "🙂🙂 数字",
    "e\u0301 ﬁ ①",
]


def real_texts():
    """Prose in two languages, markup and code in pieces of 2000 characters; made-up sentences without real data."""
    if not DATA:
        return texts() + ODD
    names = ["wikitext2/valid.txt", "gutenberg/alice_pg11.txt", "enwik/enwik5", "bleu_wmt17/reference.de"]
    whole = [(Path(DATA) / name).read_text("utf-8", errors="ignore")[:150_000] for name in names]
    whole += [path.read_text("utf-8") for path in sorted(Path(__file__).parent.glob("*.py"))]
    # Names of control symbols spelt out in a text are cut once more here than by SentencePiece.
    whole = [text.replace("<unk>", "unk").replace("</s>", "s") for text in whole]
    return [text[i : i + 2000] for text in whole for i in range(0, len(text), 2000)] + ODD


def sentencepiece_file(folder, **settings):
    """A model of 2000 pieces and the processor that SentencePiece itself reads it with."""
    sentencepiece = pytest.importorskip("sentencepiece")
    lines = [line for text in real_texts()[:150] for line in text.splitlines() if line.strip()]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        vocab_size=2000,
        hard_vocab_limit=False,
        minloglevel=2,
        **settings,
    )
    (folder / "mine.model").write_bytes(model.getvalue())
    return folder / "mine.model", sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def ids(tokenizer, text):
    backend = tokenizer.backend_tokenizer
    backend.encode_special_tokens = True
    return backend.encode(text, add_special_tokens=False).ids


LLAMA = {"byte_fallback": True, "normalization_rule_name": "identity", "remove_extra_whitespaces": False}
GEMMA = {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["\n", "\n\n", "▁▁", "<tag>"]}


@pytest.mark.parametrize(
    "settings",
    [
        {"model_type": "bpe"},
        {"model_type": "bpe", **LLAMA, "split_digits": True},
        {"model_type": "bpe", **GEMMA, "pad_id": 0, "eos_id": 1, "bos_id": 2, "unk_id": 3},
    ],
    ids=["plain", "like Llama's", "like Gemma's"],
)
def test_a_sentencepiece_model_gives_the_ids_that_sentencepiece_gives(tmp_path, settings):
    path, original = sentencepiece_file(tmp_path, **settings)
    tokenizer = import_tokenizer(TokenizerSection(use=str(path)))
    for text in real_texts():
        assert ids(tokenizer, text) == original.encode(text), text
    assert tokenizer.eos_token_id == original.eos_id() and len(tokenizer) % 64 == 0
    pieces = [original.id_to_piece(i) for i in range(original.get_piece_size())]
    assert tokenizer.convert_ids_to_tokens(range(len(pieces))) == pieces


@pytest.mark.parametrize("settings", [{}, {**LLAMA, "allow_whitespace_only_pieces": True}], ids=["plain", "with bytes"])
def test_a_unigram_model_gives_the_same_ids_but_for_ties(tmp_path, settings):
    path, original = sentencepiece_file(tmp_path, model_type="unigram", **settings)
    tokenizer = import_tokenizer(TokenizerSection(use=str(path)))
    compared = [text for text in real_texts() if "</s>" not in text]
    different = 0
    for text in compared:
        ours, theirs = ids(tokenizer, text), original.encode(text)
        different += ours != theirs
        assert sorted(ours) == sorted(theirs) or abs(score(original, ours) - score(original, theirs)) < 1e-2, text
    assert different <= 0.03 * len(compared)


def score(processor, ids):
    return sum(processor.get_score(i) for i in ids)


def test_an_imported_model_is_fit_to_chat_and_survives_saving(tmp_path):
    path, _ = sentencepiece_file(tmp_path, model_type="bpe", **LLAMA)
    tokenizer = import_tokenizer(TokenizerSection(use=str(path)))
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    check_tokenizer(loaded)
    chat = loaded.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert chat == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    assert (loaded.pad_token, loaded.eos_token) == ("<|pad|>", "</s>")
    for text in ("  two spaces", "a\n\tb", "naïve 🙂"):
        assert loaded.encode(text, add_special_tokens=False) == tokenizer.encode(text, add_special_tokens=False)
        assert loaded.decode(loaded.encode(text)) == text


def test_a_sentencepiece_model_that_would_get_other_ids_is_refused(tmp_path):
    path, _ = sentencepiece_file(tmp_path, model_type="bpe", user_defined_symbols=["www"])
    with pytest.raises(UserError, match="other ids here; train one with --add_dummy_prefix=false"):
        import_tokenizer(TokenizerSection(use=str(path)))
    path, _ = sentencepiece_file(tmp_path, model_type="char")
    with pytest.raises(UserError, match="neither Unigram nor BPE"):
        import_tokenizer(TokenizerSection(use=str(path)))


def test_a_file_that_is_no_model_is_an_error(tmp_path):
    (tmp_path / "bad.model").write_bytes(b"\x00\x01 not a model")
    with pytest.raises(UserError, match=r"tokenizer\.use: .*bad\.model is not a SentencePiece model"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "bad.model")))
    (tmp_path / "bad.tiktoken").write_bytes(b"IQ== 0\nIg== one\n")
    with pytest.raises(UserError, match=r"bad\.tiktoken, line 2 is not a base64 token"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "bad.tiktoken")))
    (tmp_path / "short.tiktoken").write_bytes(b"IQ== 0\nIg== 1\n")
    with pytest.raises(UserError, match="not a complete vocabulary: the bytes"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "short.tiktoken")))
    with pytest.raises(UserError, match=r"there is no file .*none\.model"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "none.model")))


GPT2 = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
CL100K = WORD_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@pytest.mark.parametrize("pattern", [None, GPT2], ids=["cl100k_base's words", "GPT-2's words"])
def test_a_tiktoken_file_gives_the_ids_that_tiktoken_gives(tmp_path, pattern):
    tiktoken = pytest.importorskip("tiktoken")
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {letter: byte for byte, letter in bytes_to_unicode().items()}
    learnt = train_tokenizer(real_texts()[:200], TokenizerSection(vocab_size=1024 if DATA else 320))
    pieces = learnt.convert_ids_to_tokens(range(16, len(learnt)))
    ranks = {bytes(byte_of[letter] for letter in piece): rank for rank, piece in enumerate(pieces)}
    lines = [base64.b64encode(token) + b" %d" % rank for token, rank in ranks.items()]
    (tmp_path / "mine.tiktoken").write_bytes(b"\n".join(lines) + b"\n")
    original = tiktoken.Encoding("mine", pat_str=pattern or CL100K, mergeable_ranks=ranks, special_tokens={})
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "mine.tiktoken"), pattern=pattern))
    for text in real_texts():
        assert ids(tokenizer, text) == original.encode_ordinary(text), text
        assert tokenizer.backend_tokenizer.decode(ids(tokenizer, text), skip_special_tokens=False) == text
    assert tokenizer.eos_token_id == len(ranks) and len(tokenizer) % 64 == 0
    check_tokenizer(tokenizer)


def test_an_existing_tokenizer_gets_what_it_lacks_and_keeps_its_ids(tmp_path):
    tokenizer = train_tokenizer(texts(), TokenizerSection(vocab_size=320))
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, eos_token="<|endoftext|>")
    bare.save_pretrained(tmp_path)
    used = import_tokenizer(TokenizerSection(use=str(tmp_path)))
    assert used.pad_token == "<|pad|>" and used.chat_template == tokenizer.chat_template
    assert used.get_vocab() == tokenizer.get_vocab()
    assert (
        used.apply_chat_template(CHAT, return_dict=True)["input_ids"]
        == tokenizer.apply_chat_template(CHAT, return_dict=True)["input_ids"]
    )


def test_what_spells_a_special_token_of_a_unigram_model_is_text(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    letters = [(chr(code), -5.0) for code in range(33, 127)] + [("\u2581", -4.0)]
    backend = Tokenizer(models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters], unk_id=2))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    specials = {"eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **specials)
    assert tokenizer.eos_token_id in ids(tokenizer, "a </s> b")
    backend.enable_truncation(4)
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(str(tmp_path), None, "tokenizer.use")
    assert tokenizer.eos_token_id not in ids(loaded, "a </s> b</s>")
    assert len(ids(loaded, "one more")) == 9  # not truncated


def test_a_template_of_ones_own_wins_over_that_of_the_tokenizer(tmp_path):
    tokenizer = train_tokenizer(texts(), TokenizerSection(vocab_size=400))
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path / "other")
    (tmp_path / "mine.jinja").write_text("{{ 'mine' }}")
    for given, wanted in ((None, tokenizer.chat_template), (str(tmp_path / "mine.jinja"), "{{ 'mine' }}")):
        used = import_tokenizer(TokenizerSection(use=str(tmp_path / "other"), chat_template=given))
        assert used.chat_template == wanted


def test_a_vocabulary_of_odd_size_is_filled_to_a_multiple_of_64(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({letter: i for i, letter in enumerate(alphabet)}, []))
    PreTrainedTokenizerFast(tokenizer_object=backend).save_pretrained(tmp_path)
    used = import_tokenizer(TokenizerSection(use=str(tmp_path)))
    assert len(used) == 320 and used.eos_token_id >= 256
    assert used.convert_ids_to_tokens(range(256)) == alphabet
    assert {"<|im_start|>", "<|im_end|>", "<|reserved_0|>"} <= set(used.all_special_tokens)


def test_a_tokenizer_that_is_not_there_is_an_error(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"tokenizer\.use: nobody/nothing cannot be loaded"):
        import_tokenizer(TokenizerSection(use="nobody/nothing"))
    with pytest.raises(UserError, match=r"tokenizer\.compare: nobody/nothing cannot be loaded"):
        load_tokenizer("nobody/nothing", None, "tokenizer.compare")


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match=r"`pattern` belongs to a \.tiktoken file"):
        TokenizerSection(pattern="x")
    with pytest.raises(ValueError, match="leave one out"):
        TokenizerSection(use="x", data=["y"])


@pytest.mark.parametrize("unused", [(16,), (0, 5, 17), (100, 101, 300), tuple(range(319, 329)), (7, 320)])
def test_an_unused_id_gets_a_reserved_token_and_no_other_token_moves(tmp_path, unused, capsys):
    original = with_unused_ids(*unused)
    original.save_pretrained(tmp_path / "mine")
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "mine")))
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(384)) and len(tokenizer) == 384
    assert {token: vocabulary[token] for token in original.get_vocab()} == original.get_vocab()
    real = [number for number in unused if number < max(original.get_vocab().values())]
    assert all(tokenizer.convert_ids_to_tokens(number) == f"<|unused_{number}|>" for number in real)
    assert set(real) <= set(tokenizer.all_special_ids)
    assert f"{len(real)} ids have no token ({real[0]} for one)" in capsys.readouterr().out
    check_tokenizer(tokenizer)
    tokenizer.save_pretrained(tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert again.get_vocab() == vocabulary
    for text in [*texts()[:20], *ODD, f"<|unused_{real[0]}|>"]:
        assert ids(again, text) == ids(original, text)
        assert again.decode(ids(again, text)) == text


def test_ids_unused_between_a_unigram_model_and_its_added_tokens_are_filled(tmp_path):
    pieces = [("<unk>", 0.0), *((chr(97 + i), -2.0) for i in range(26)), *((f"<0x{i:02X}>", -9.0) for i in range(256))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    state = json.loads(backend.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    state["added_tokens"] = [
        {"id": 283, "content": "<end>", **flags},
        {"id": 290, "content": "<pad>", **flags},
    ]
    original = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)), eos_token="<end>", pad_token="<pad>"
    )
    original.save_pretrained(tmp_path / "mine")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "mine").get_vocab()
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "mine")))
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert {token: tokenizer.get_vocab()[token] for token in loaded} == loaded
    assert ids(tokenizer, "hello 数") == ids(original, "hello 数")


def test_two_tokens_with_one_id_are_refused(tmp_path):
    state = json.loads(trained_json())
    state["model"]["vocab"]["twice"] = 300
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/tokenizer.json").write_text(json.dumps(state))
    named = {"eos_token": "<|endoftext|>", "pad_token": "<|pad|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "mine/tokenizer_config.json").write_text(json.dumps(named))
    with pytest.raises(UserError, match="1 ids that two tokens share"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "mine")))


def test_a_tiktoken_file_may_leave_a_rank_to_a_special_token(tmp_path):
    lines = [f"{base64.b64encode(bytes([byte])).decode()} {byte}" for byte in range(256)]
    lines.append(f"{base64.b64encode(b'th').decode()} 257")  # 256 is <|endoftext|>, as in p50k_base
    (tmp_path / "gap.tiktoken").write_text("\n".join(lines))
    tokenizer = import_tokenizer(TokenizerSection(use=str(tmp_path / "gap.tiktoken")))
    assert ids(tokenizer, "th") == [257] and tokenizer.convert_ids_to_tokens(256) == "<|unused_256|>"
    (tmp_path / "twice.tiktoken").write_text("\n".join([*lines, f"{base64.b64encode(b'ht').decode()} 257"]))
    with pytest.raises(UserError, match="two of its tokens have the same rank"):
        import_tokenizer(TokenizerSection(use=str(tmp_path / "twice.tiktoken")))
