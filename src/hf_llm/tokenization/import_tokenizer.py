"""Tokenizers that are there already: of the Hub or a folder, a SentencePiece `.model`, a tiktoken file.

They keep their ids. What they lack for a chat model (padding, end of text, the turns' tokens, a template) is added
after them, and reserved tokens up to a multiple of 64.
"""

import base64
import binascii
import re
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.errors import UserError
from hf_llm.tokenization.checks import takes_text_for
from hf_llm.tokenization.sentinel_tokens import MASK
from hf_llm.tokenization.train import (
    END_OF_TEXT,
    MULTIPLE,
    PAD,
    TURN_END,
    TURN_START,
    TokenizerSection,
    chat_template,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_SPACE = "\u2581"  # SentencePiece's space
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED, _BYTE = range(1, 7)  # sentencepiece_model.proto, Type
_UNIGRAM, _BPE = 1, 2  # sentencepiece_model.proto, ModelType


def use_tokenizer(section: TokenizerSection, gaps: list[str] | None = None) -> "PreTrainedTokenizerFast":
    """The tokenizer that `section.use` names, with a pad token of its own, the chat template that `section` names (ours
    where neither has one), and those tokens of `gaps` (`hf_llm.tokenization.sentinel_tokens`) that it lacks."""
    tokenizer = load_tokenizer(section.use, section.pattern, "tokenizer.use")
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": END_OF_TEXT})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if section.chat_template or tokenizer.chat_template is None:
        _add(tokenizer, [TURN_START, TURN_END])
        tokenizer.chat_template = chat_template(section.chat_template or "chatml")
    if MASK in (gaps or []) and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    _add(tokenizer, [token for token in gaps or [] if token != MASK and token not in tokenizer.get_vocab()])
    names = (f"<|reserved_{i}|>" for i in count())
    unused = (name for name in names if name not in tokenizer.get_vocab())
    _add(tokenizer, list(islice(unused, -len(tokenizer) % MULTIPLE)))
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1, "ids with gaps"
    return tokenizer


def _add(tokenizer: "PreTrainedTokenizerFast", tokens: list[str]) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)


def load_tokenizer(name: str, pattern: str | None, key: str, **options: Any) -> "PreTrainedTokenizerFast":
    """A tokenizer as it is: a folder, a Hub id (`options` are `from_pretrained`'s), a `.model` or a `.tiktoken` file.

    Raises UserError with the recipe's `key` where it cannot be read.
    """
    from transformers import AutoTokenizer

    if Path(name).suffix in (".model", ".tiktoken"):
        read = read_sentencepiece if Path(name).suffix == ".model" else read_tiktoken
        if not Path(name).is_file():
            raise UserError(f"{key}: there is no file {name}")
        return read(Path(name), key, pattern)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{key}: {name} cannot be loaded: {error}\n"
            "  It is a folder with tokenizer.json, the id of a model on the Hub, a SentencePiece .model or a .tiktoken "
            "file; check the name and the network."
        ) from error
    if not tokenizer.is_fast:
        raise UserError(f"{key}: {name} has no tokenizer.json; convert it with the tokenizers library")
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    _keep_out_specials(tokenizer)
    return tokenizer


def _keep_out_specials(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Cut a special token that a text spells out, where the model would take it for a piece as any other (T5's)."""
    from tokenizers import models, pre_tokenizers

    backend, names = tokenizer.backend_tokenizer, tokenizer.all_special_tokens
    if isinstance(backend.model, models.Unigram) and any(takes_text_for(tokenizer, name) for name in names):
        steps = [_cut_within(names), backend.pre_tokenizer]
        backend.pre_tokenizer = pre_tokenizers.Sequence([step for step in steps if step])


def _cut_within(names: list[str]) -> Any:
    """A pre-tokenizer that cuts every one of these names after its first letter."""
    from tokenizers import Regex, pre_tokenizers

    within = "|".join(f"{re.escape(name[0])}(?={re.escape(name[1:])})" for name in names if len(name) > 1)
    return pre_tokenizers.Split(Regex(within), behavior="merged_with_previous")


def read_tiktoken(path: Path, key: str, pattern: str | None) -> "PreTrainedTokenizerFast":
    """A tiktoken file (`base64-of-the-bytes rank` on every line), its words cut by `pattern`.

    The file does not hold the pattern: without one it is cl100k_base's, which is Llama 3's too.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    class Converter(TikTokenConverter):
        load_tiktoken_bpe = staticmethod(lambda file: _ranks(Path(file), key))

    settings = {"pattern": pattern} if pattern else {}
    tokenizer = Converter(vocab_file=str(path), **settings).converted()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _ranks(path: Path, key: str) -> dict[bytes, int]:
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{key}: {path}, line {number} is no base64 token and its rank: {line[:60]!r}") from None
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or sorted(ranks.values()) != list(range(len(ranks))):
        what = f"the bytes {missing[:5]}... have no token" if missing else "the ranks have gaps"
        raise UserError(f"{key}: {path} is no whole vocabulary: {what}")
    return ranks


def read_sentencepiece(path: Path, key: str, pattern: str | None = None) -> "PreTrainedTokenizerFast":
    """A SentencePiece model, Unigram or BPE, as it normalises and cuts text itself (`pattern` has no place in it)."""
    from transformers import PreTrainedTokenizerFast

    if pattern:
        raise UserError(f"tokenizer.pattern belongs to a .tiktoken file; {path} has its own rules, take it out")
    model = _parsed(path, key)
    kind, rules = model.trainer_spec.model_type, model.trainer_spec
    if kind not in (_UNIGRAM, _BPE) or rules.treat_whitespace_as_suffix:
        raise UserError(f"{key}: {path} is neither Unigram nor BPE with the space before the word; take another")
    if kind == _BPE and model.normalizer_spec.add_dummy_prefix and any(p.type == _USER_DEFINED for p in model.pieces):
        raise UserError(
            f"{key}: {path} is a BPE with user-defined symbols and a space put before every text, which would get "
            "other ids here; train one with --add_dummy_prefix=false, or take the model's tokenizer.json"
        )
    tokenizer = _unigram(model) if kind == _UNIGRAM else _bpe(model)
    tokenizer.normalizer = _normalizer(model.normalizer_spec)
    tokenizer.decoder = _decoder(model)
    names = {"eos_token": rules.eos_id, "bos_token": rules.bos_id, "pad_token": rules.pad_id, "unk_token": rules.unk_id}
    special = {name: model.pieces[i].piece for name, i in names.items() if i >= 0}
    controls = [piece.piece for piece in model.pieces if piece.type == _CONTROL]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[piece for piece in controls if piece not in special.values()],
        clean_up_tokenization_spaces=False,
        **special,
    )


def _parsed(path: Path, key: str) -> Any:
    """The message `ModelProto` of a SentencePiece file."""
    try:
        from google.protobuf.message import DecodeError
        from transformers.convert_slow_tokenizer import import_protobuf

        model = import_protobuf().ModelProto()
    except ImportError:
        raise UserError(f"{key}: a SentencePiece model is read by protobuf; pip install protobuf") from None
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{key}: {path} is no SentencePiece model") from None
    if not model.pieces:
        raise UserError(f"{key}: {path} is no SentencePiece model: it has no pieces")
    return model


def _unigram(model: Any) -> "Tokenizer":
    """Scores as SentencePiece reckons them (unigram_model.cc, EncodeOptimized): a user-defined piece is above what it
    could be cut into. What no text is ever cut into, as control symbols, is kept out by a cut within its name."""
    from tokenizers import Tokenizer, models

    rules, lowest = model.trainer_spec, min(piece.score for piece in model.pieces if piece.type == _NORMAL)
    scores = {_NORMAL: lambda piece: piece.score, _USER_DEFINED: lambda piece: -0.1}
    vocabulary = [(piece.piece, scores.get(piece.type, lambda _: lowest)(piece)) for piece in model.pieces]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=rules.unk_id, byte_fallback=rules.byte_fallback))
    names = [piece.piece for piece in model.pieces if piece.type in (_UNKNOWN, _CONTROL, _UNUSED, _BYTE)]
    tokenizer.pre_tokenizer = _cut_within(names)
    return tokenizer


def _bpe(model: Any) -> "Tokenizer":
    from tokenizers import AddedToken, Tokenizer, models
    from transformers.convert_slow_tokenizer import generate_merges

    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _NORMAL}
    merges = generate_merges(ids, scores, [piece for piece in ids if piece not in scores])
    rules = model.trainer_spec
    unknown = model.pieces[rules.unk_id].piece
    tokenizer = Tokenizer(models.BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=rules.byte_fallback))
    own = [piece.piece for piece in model.pieces if piece.type == _USER_DEFINED]
    tokenizer.add_tokens([AddedToken(piece, normalized=_SPACE in piece) for piece in own])
    return tokenizer


def _normalizer(rules: Any) -> Any:
    from tokenizers import Regex, normalizers

    steps = [normalizers.Precompiled(rules.precompiled_charsmap)] if rules.precompiled_charsmap else []
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex(r"\A +| +\z"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE if rules.escape_whitespaces else " "))
    return normalizers.Sequence(steps)


def _decoder(model: Any) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
