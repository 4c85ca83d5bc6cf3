"""Train a Unigram tokenizer (Kudo 2018, "Subword Regularization") with the SentencePiece library.

SentencePiece trains: the trainer of the tokenizers library gives another vocabulary at every run. The result is a
`tokenizers.Tokenizer`, cut into words as our BPE is where SentencePiece has its own rules, so that numbers, white space
and line ends are treated alike. Two things of SentencePiece's own are left out because text would not come back
exactly: no text is normalised, and a space is a space, not U+2581, which stands for itself. What has no piece is spelt
in bytes (`<0x41>`).
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hf_llm.core.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "\u2581"  # SentencePiece's space
_TAB = "\ue009"  # stands for a tab, which ends a column of SentencePiece's input
_END = "\ue00a"  # ends a word in some lines of it
_ASCII = "".join(map(chr, range(33, 127)))  # has pieces of its own in any case
_LONGEST = 256  # characters of a word that is learnt from
_UNFIT = re.compile(f"[\0{_SPACE}\u2585{_TAB}{_END}]")  # U+2585 is reserved in SentencePiece
_THREADS = 4  # of sums: their number changes the last digits, so it is fixed


def train_unigram(texts: Iterable[str], size: int, specials: list[str], words: str) -> "Tokenizer":
    """A tokenizer of `size` tokens: `specials`, 256 bytes, and the pieces learnt from `texts` cut by the regex `words`.

    May have fewer where the text has no more pieces. Raises UserError where the vocabulary is too small for the letters
    of the text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    cutting = pre_tokenizers.Split(Regex(words), behavior="isolated")
    pieces = _learn(_counted(texts, cutting), size - len(specials) + 1)
    never = 100 * min(score for _, score in pieces)  # no text is ever cut into a special token or the name of a byte
    vocabulary = [(token, never) for token in (*specials, *BYTES)] + pieces
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))  # the bytes leave nothing unknown
    tokenizer.pre_tokenizer = cutting
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _counted(texts: Iterable[str], cutting: object) -> Counter:
    words = Counter()
    for text in texts:
        words.update(word for word, _ in cutting.pre_tokenize_str(text))
    return words


def _learn(words: Counter, size: int) -> list[tuple[str, float]]:
    """The pieces that SentencePiece learns from counted words and their log probabilities."""
    import sentencepiece

    rows = (
        row
        for word, count in sorted(words.items())
        if len(word) <= _LONGEST and not _UNFIT.search(word)
        for row in _rows(word.replace("\t", _TAB), count)
    )
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=rows,
            input_format="tsv",
            model_writer=model,
            vocab_size=size + 1,
            user_defined_symbols=[_END],
            hard_vocab_limit=False,
            required_chars=_ASCII,
            byte_fallback=True,
            max_sentencepiece_length=32,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,  # these four: words are cut already
            split_by_unicode_script=False,
            split_by_number=False,
            split_digits=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _explained(error, size) from error
    learnt = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    return [
        (learnt.id_to_piece(i).replace(_SPACE, " ").replace(_TAB, "\t"), learnt.get_score(i))
        for i in range(learnt.get_piece_size())
        if not learnt.is_byte(i) and not learnt.is_unknown(i) and learnt.id_to_piece(i) != _END
    ]


def _rows(word: str, count: int) -> Iterator[str]:
    """The lines for a word and how often it stands in the text.

    SentencePiece tries as a piece what is followed by one thing here and another there; a word alone would be followed
    by the end of its line always, and never be tried. So once it is followed by a symbol.
    """
    if count > 1:
        yield f"{word}{_END}\t1"
    yield f"{word}\t{max(1, count - 1)}"


def _explained(error: RuntimeError, size: int) -> Exception:
    """What SentencePiece's message means for the recipe."""
    found = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if found:
        return UserError(
            f"tokenizer.vocab_size leaves {size - 257:,} tokens beside the bytes and the special ones; the letters of "
            f"the text alone are {int(found[1]) - 258:,}: make it larger, or write tokenizer.algorithm=byte_level_bpe"
        )
    return UserError(f"sentencepiece cannot learn from this text: {error}; give it more")
