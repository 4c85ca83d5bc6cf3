"""Load an existing tokenizer: from the Hub or a folder, from a SentencePiece `.model` or from a tiktoken file.

Its tokens keep their ids. What it lacks for a chat model (padding, end of text, the tokens of chat turns, a template)
is added after them, and then reserved tokens up to a multiple of 64. An id that no token has gets a reserved one too.
"""

import base64
import binascii
import json
import re
from collections.abc import Sequence
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.extras import require_extras
from hf_llm.tokenization.checks import is_parsed_from_text
from hf_llm.tokenization.sentinel_tokens import MASK
from hf_llm.tokenization.text_boundaries import set_boundaries, text_boundaries
from hf_llm.tokenization.train import (
    END_OF_TEXT,
    PAD,
    TURN_END,
    TURN_START,
    VOCABULARY_MULTIPLE,
    TokenizerSection,
    load_chat_template,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

TOKENIZER_SUFFIXES = (".model", ".tiktoken")  # of files that hold a tokenizer; other tokenizers are folders, or ids

_SPACE = "\u2581"  # SentencePiece's space
_USER_DEFINED_SCORE = -0.1  # above what a user-defined piece could be split into (unigram_model.cc, EncodeOptimized)


class _PieceType(IntEnum):
    """`Type` of sentencepiece_model.proto."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


class _ModelType(IntEnum):
    """`ModelType` of sentencepiece_model.proto."""

    UNIGRAM = 1
    BPE = 2


def import_tokenizer(section: TokenizerSection, denoising_tokens: Sequence[str] = ()) -> "PreTrainedTokenizerFast":
    """Load the tokenizer that `section.use` names, and add what it lacks.

    That is a pad token other than its end of text, the chat template that `section` names (ours if neither has one),
    and the mask or sentinel tokens in `denoising_tokens` (`hf_llm.tokenization.sentinel_tokens`).
    """
    tokenizer = load_tokenizer(section.use, section.pattern, "tokenizer.use")
    _name_unused_ids(tokenizer, section.use)
    _add_end_and_padding(tokenizer)
    _fit_boundaries(tokenizer, section.use, denoising_tokens)

    if section.chat_template or tokenizer.chat_template is None:
        _add_special_tokens(tokenizer, [TURN_START, TURN_END])
        tokenizer.chat_template = load_chat_template(section.chat_template or "chatml")
        if section.chat_template in (None, "chatml"):
            _begin_chats_as_texts(tokenizer)

    if MASK in denoising_tokens and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": MASK})
    vocabulary = tokenizer.get_vocab()
    sentinels = [token for token in denoising_tokens if token != MASK]
    _add_special_tokens(tokenizer, [token for token in sentinels if token not in vocabulary])

    _fill_vocabulary(tokenizer)
    assert len(tokenizer) == max(tokenizer.get_vocab().values()) + 1, "some ids have no token"
    return tokenizer


def _name_unused_ids(tokenizer: "PreTrainedTokenizerFast", name: str) -> None:
    """Give each id without a token, below the largest id, a reserved token, which no text has.

    The tokenizers library gives a new token the id that follows from the number of tokens, which another token may have
    where ids are unused. Raises UserError where two tokens share an id.
    """
    from tokenizers import Tokenizer

    vocabulary = tokenizer.get_vocab()
    token_by_id = {number: token for token, number in vocabulary.items()}
    if len(token_by_id) < len(vocabulary):
        shared = len(vocabulary) - len(token_by_id)
        raise UserError(f"tokenizer.use: {name} has {shared:,} ids that two tokens share; use another tokenizer")
    unused = [number for number in range(max(token_by_id) + 1) if number not in token_by_id]
    if not unused:
        return

    reserved = {number: f"<|unused_{number}|>" for number in unused}
    token_by_id |= reserved
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    model = state["model"]
    if isinstance(model["vocab"], list):  # Unigram: the place in the list is the id
        lowest = min(score for _, score in model["vocab"])
        for number in range(len(model["vocab"]), len(token_by_id)):
            model["vocab"].append([token_by_id[number], lowest])
    else:
        model["vocab"] |= {token: number for number, token in reserved.items()}

    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(state))  # transformers has no public way to set it
    _add_special_tokens(tokenizer, list(reserved.values()))
    print_main(f"{name}: {len(unused):,} ids have no token ({unused[0]} for one); they are reserved ones here")


def _add_end_and_padding(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Add an end of text (the token that its post-processor puts after a text, if any) and padding where they lack."""
    if tokenizer.eos_token is None:
        _, after = text_boundaries(tokenizer)
        end = tokenizer.convert_ids_to_tokens(after[-1]) if after else END_OF_TEXT
        tokenizer.add_special_tokens({"eos_token": end})
    if tokenizer.pad_token is None or tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.add_special_tokens({"pad_token": PAD})


def _fit_boundaries(tokenizer: "PreTrainedTokenizerFast", name: str, denoising_tokens: Sequence[str]) -> None:
    """Keep what the tokenizer puts before a text; end every text where masked text is restored, and none elsewhere.

    A causal model continues prompts, which an end of text would end before the model writes a word.
    """
    before_ids, after_ids = text_boundaries(tokenizer)
    before = tokenizer.convert_ids_to_tokens(before_ids)
    end = tokenizer.eos_token
    if denoising_tokens:
        if after_ids[-1:] == [tokenizer.eos_token_id]:
            return
        if MASK in denoising_tokens and not before:
            before = [end]  # as BERT's [CLS]
        set_boundaries(tokenizer.backend_tokenizer, before, [end])
    elif after_ids:
        after = " ".join(tokenizer.convert_ids_to_tokens(after_ids))
        set_boundaries(tokenizer.backend_tokenizer, before, [])
        print_main(
            f"{name} puts {after} after every text, so also after a prompt; the run's tokenizer does not, and every "
            f"document ends with {end}"
        )


def _begin_chats_as_texts(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Let a conversation begin with what the tokenizer puts before a text, as the templates of Llama 3 do."""
    before, _ = text_boundaries(tokenizer)
    if before:
        start = "".join(tokenizer.convert_ids_to_tokens(before))
        tokenizer.chat_template = f"{{{{- {json.dumps(start, ensure_ascii=False)} }}}}{tokenizer.chat_template}"


def _add_special_tokens(tokenizer: "PreTrainedTokenizerFast", tokens: list[str]) -> None:
    tokenizer.add_special_tokens({"extra_special_tokens": tokens}, replace_extra_special_tokens=False)


def _fill_vocabulary(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Add reserved tokens up to a multiple of `VOCABULARY_MULTIPLE`."""
    missing = -len(tokenizer) % VOCABULARY_MULTIPLE  # up to the next multiple
    vocabulary = tokenizer.get_vocab()
    reserved = []
    number = 0
    while len(reserved) < missing:
        name = f"<|reserved_{number}|>"
        if name not in vocabulary:
            reserved.append(name)
        number += 1
    _add_special_tokens(tokenizer, reserved)


def load_tokenizer(name: str, pattern: str | None, key: str, **options: Any) -> "PreTrainedTokenizerFast":
    """Load a tokenizer without adding to it: from a folder, a Hub id, a `.model` or a `.tiktoken` file.

    `options` go to `from_pretrained`. Raises UserError with the recipe's `key` where it cannot be read.
    """
    path = Path(name)
    if path.suffix in TOKENIZER_SUFFIXES:
        if not path.is_file():
            raise UserError(f"{key}: there is no file {name}")
        if path.suffix == ".model":
            return read_sentencepiece(path, key, pattern)
        return read_tiktoken(path, key, pattern)

    from transformers import AutoTokenizer

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
    _keep_special_text_plain(tokenizer)
    return tokenizer


def _keep_special_text_plain(tokenizer: "PreTrainedTokenizerFast") -> None:
    """Keep a special token's name that occurs in a text from becoming that token: split the name before tokenizing.

    This is needed for some Unigram models (T5's), which find their special tokens in plain text.
    """
    from tokenizers import models, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    names = tokenizer.all_special_tokens
    if not isinstance(backend.model, models.Unigram):
        return
    if not any(is_parsed_from_text(tokenizer, name) for name in names):
        return

    steps = [_build_name_splitter(names)]
    if backend.pre_tokenizer:
        steps.append(backend.pre_tokenizer)
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _build_name_splitter(names: list[str]) -> Any:
    """Build a pre-tokenizer that splits each of these names after its first character: it is never one piece."""
    from tokenizers import Regex, pre_tokenizers

    # Each matches the first character of a name where the name's other characters follow.
    first_characters = []
    for name in names:
        if len(name) > 1:
            first_characters.append(f"{re.escape(name[0])}(?={re.escape(name[1:])})")
    return pre_tokenizers.Split(Regex("|".join(first_characters)), behavior="merged_with_previous")


def read_tiktoken(path: Path, key: str, pattern: str | None) -> "PreTrainedTokenizerFast":
    """Read a tiktoken file, which has a token's bytes in base64 and its rank on every line.

    `pattern` splits text into words. The file does not hold it; the default is cl100k_base's, which Llama 3 uses too.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    # The converter reads the file itself; here it gets ranks that have been checked.
    class Converter(TikTokenConverter):
        load_tiktoken_bpe = staticmethod(lambda file: _read_ranks(Path(file), key))

    settings = {"pattern": pattern} if pattern else {}
    tokenizer = Converter(vocab_file=str(path), **settings).converted()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _read_ranks(path: Path, key: str) -> dict[bytes, int]:
    """Return the rank of every token of a tiktoken file, where special tokens leave gaps (p50k_base has one).

    Raises UserError for a file that is not a vocabulary, or not a complete one.
    """
    ranks = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error):
            raise UserError(f"{key}: {path}, line {number} is not a base64 token and its rank: {line[:60]!r}") from None

    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise UserError(f"{key}: {path} is not a complete vocabulary: the bytes {missing[:5]}... have no token")
    if len(set(ranks.values())) < len(ranks) or min(ranks.values()) < 0:
        raise UserError(f"{key}: {path} is not a vocabulary: two of its tokens have the same rank, or one is negative")
    return ranks


def read_sentencepiece(path: Path, key: str, pattern: str | None = None) -> "PreTrainedTokenizerFast":
    """Read a SentencePiece model, Unigram or BPE, which normalises and splits text by its own rules.

    Raises UserError for a model of another kind, or one that would get other ids here.
    """
    from transformers import PreTrainedTokenizerFast

    if pattern:
        raise UserError(f"tokenizer.pattern belongs to a .tiktoken file; {path} has its own rules, leave it out")

    model = _parse_model(path, key)
    spec = model.trainer_spec
    if spec.model_type not in (_ModelType.UNIGRAM, _ModelType.BPE) or spec.treat_whitespace_as_suffix:
        raise UserError(f"{key}: {path} is neither Unigram nor BPE with the space before the word; use another")

    is_bpe = spec.model_type == _ModelType.BPE
    has_own_symbols = bool(_pieces_of_type(model, _PieceType.USER_DEFINED))
    if is_bpe and has_own_symbols and model.normalizer_spec.add_dummy_prefix:
        raise UserError(
            f"{key}: {path} is a BPE with user-defined symbols and a space put before every text, which would get "
            "other ids here; train one with --add_dummy_prefix=false, or take the model's tokenizer.json"
        )

    tokenizer = _build_bpe(model) if is_bpe else _build_unigram(model)
    tokenizer.normalizer = _build_normalizer(model.normalizer_spec)
    tokenizer.decoder = _build_decoder(model)

    # A model has -1 for a special token that it lacks.
    ids = {"eos_token": spec.eos_id, "bos_token": spec.bos_id, "pad_token": spec.pad_id, "unk_token": spec.unk_id}
    named = {name: model.pieces[i].piece for name, i in ids.items() if i >= 0}
    controls = _pieces_of_type(model, _PieceType.CONTROL)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        extra_special_tokens=[piece for piece in controls if piece not in named.values()],
        clean_up_tokenization_spaces=False,
        **named,
    )


def _pieces_of_type(model: Any, *types: _PieceType) -> list[str]:
    return [piece.piece for piece in model.pieces if piece.type in types]


def _parse_model(path: Path, key: str) -> Any:
    """Parse a SentencePiece file: return its protobuf message `ModelProto`. Raises UserError."""
    require_extras("sentencepiece")
    from google.protobuf.message import DecodeError
    from transformers.convert_slow_tokenizer import import_protobuf

    model = import_protobuf().ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except DecodeError:
        raise UserError(f"{key}: {path} is not a SentencePiece model") from None
    if not model.pieces:
        raise UserError(f"{key}: {path} is not a SentencePiece model: it has no pieces")
    return model


def _build_unigram(model: Any) -> "Tokenizer":
    """Build a Unigram tokenizer with SentencePiece's scores.

    Some pieces, such as control symbols, must never come from text: their names are split before tokenizing.
    """
    from tokenizers import Tokenizer, models

    lowest = min(piece.score for piece in model.pieces if piece.type == _PieceType.NORMAL)
    vocabulary = []
    for piece in model.pieces:
        if piece.type == _PieceType.NORMAL:
            score = piece.score
        elif piece.type == _PieceType.USER_DEFINED:
            score = _USER_DEFINED_SCORE
        else:
            score = lowest
        vocabulary.append((piece.piece, score))

    spec = model.trainer_spec
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=spec.unk_id, byte_fallback=spec.byte_fallback))
    never_in_text = _pieces_of_type(model, _PieceType.UNKNOWN, _PieceType.CONTROL, _PieceType.UNUSED, _PieceType.BYTE)
    tokenizer.pre_tokenizer = _build_name_splitter(never_in_text)
    return tokenizer


def _build_bpe(model: Any) -> "Tokenizer":
    """Build a BPE tokenizer with its merges in the order of SentencePiece's scores."""
    from tokenizers import AddedToken, Tokenizer, models
    from transformers.convert_slow_tokenizer import generate_merges

    ids = {piece.piece: i for i, piece in enumerate(model.pieces)}
    scores = {piece.piece: piece.score for piece in model.pieces if piece.type == _PieceType.NORMAL}
    never_merged = [piece for piece in ids if piece not in scores]
    merges = generate_merges(ids, scores, never_merged)

    spec = model.trainer_spec
    bpe = models.BPE(
        ids,
        merges,
        unk_token=model.pieces[spec.unk_id].piece,
        fuse_unk=True,
        byte_fallback=spec.byte_fallback,
    )
    tokenizer = Tokenizer(bpe)
    user_defined = _pieces_of_type(model, _PieceType.USER_DEFINED)
    tokenizer.add_tokens([AddedToken(piece, normalized=_SPACE in piece) for piece in user_defined])
    return tokenizer


def _build_normalizer(spec: Any) -> Any:
    """Build the normalizer for the `NormalizerSpec` of a SentencePiece model."""
    from tokenizers import Regex, normalizers

    steps = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        steps.append(normalizers.Replace(Regex(r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    if spec.escape_whitespaces:
        steps.append(normalizers.Replace(" ", _SPACE))
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE if spec.escape_whitespaces else " "))
    return normalizers.Sequence(steps)


def _build_decoder(model: Any) -> Any:
    from tokenizers import decoders

    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if model.normalizer_spec.add_dummy_prefix:
        steps.append(decoders.Strip(" ", 1, 0))
    return decoders.Sequence(steps)
