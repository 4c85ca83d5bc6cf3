"""Train a Unigram tokenizer (Kudo 2018, "Subword Regularization") with the SentencePiece library.

SentencePiece trains: the trainer of the tokenizers library gives another vocabulary at every run. The result is a
`tokenizers.Tokenizer`, which splits text into words as our BPE does where SentencePiece has its own rules, so that
numbers, white space and line ends are treated alike. Two features of SentencePiece are not used,
because with them decoding would not return the text exactly: text is not normalised, and a space is not replaced by
U+2581. Characters that are in no piece are encoded as bytes (`<0x41>`).
"""

import io
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.extras import require_extras

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.pre_tokenizers import PreTokenizer

BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPACE = "\u2581"  # SentencePiece's space
_TAB = "\ue009"  # replaces a tab in SentencePiece's input, where a tab separates columns
_END_OF_WORD = "\ue00a"  # follows a word in some lines of that input
_ASCII = "".join(map(chr, range(33, 127)))  # characters that always get a piece
_MAX_WORD_CHARS = 256  # a longer word is cut; SentencePiece leaves out lines of more than 4,192 bytes
_RESERVED_CHARACTERS = re.compile(f"[\0{_SPACE}\u2585{_TAB}{_END_OF_WORD}]")  # U+2585 is SentencePiece's own
_THREADS = 4  # fixed, because the number of threads changes the rounding of sums and so the vocabulary

# Pieces of a vocabulary that hold no characters of the text: the bytes and the end of a word. SentencePiece's own
# numbers count its unknown piece too.
_PIECES_WITHOUT_TEXT = len(BYTES) + 1
_COUNTED_WITHOUT_TEXT = _PIECES_WITHOUT_TEXT + 1


def train_unigram(texts: Iterable[str], size: int, specials: list[str], word_pattern: str) -> "Tokenizer":
    """Train a tokenizer of `size` tokens: `specials`, 256 bytes, and pieces of the words that the regex `word_pattern`
    splits `texts` into.

    It has fewer tokens where the text has no more pieces. Raises UserError where the vocabulary is too small for the
    characters of the text.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    word_splitter = pre_tokenizers.Split(Regex(word_pattern), behavior="isolated")
    words, reserved_count = _count_words(texts, word_splitter)
    if reserved_count:
        print_main(
            f"{reserved_count:,} characters of the sample are SentencePiece's own marks (U+2581 for one); they are not "
            "trained on and become bytes"
        )
    pieces = _train_pieces(words, size - len(specials) + 1)  # one more for the end of a word, which is not kept

    # So improbable that no text is ever split into a special token or the name of a byte.
    scores = [score for _, score in pieces]
    lowest_score = 100 * min(scores)
    never_used = [(token, lowest_score) for token in (*specials, *BYTES)]
    model = models.Unigram(never_used + pieces, unk_id=0, byte_fallback=True)  # the bytes leave nothing unknown

    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = word_splitter
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return tokenizer


def _count_words(texts: Iterable[str], word_splitter: "PreTokenizer") -> tuple[Counter, int]:
    """Count the words of texts, cut at reserved characters and where they are too long; and the reserved characters."""
    words = Counter()
    reserved_count = 0
    for text in texts:
        for word, _ in word_splitter.pre_tokenize_str(text):
            parts = _RESERVED_CHARACTERS.split(word)
            reserved_count += len(parts) - 1
            for part in parts:
                words.update(_cut_word(part))
    return words, reserved_count


def _cut_word(word: str) -> list[str]:
    """Cut a word into pieces of at most `_MAX_WORD_CHARS` characters; none of an empty one."""
    return [word[start : start + _MAX_WORD_CHARS] for start in range(0, len(word), _MAX_WORD_CHARS)]


def _train_pieces(words: Counter, size: int) -> list[tuple[str, float]]:
    """Return the pieces that SentencePiece trains on counted words, with their log probabilities.

    Raises UserError where SentencePiece fails.
    """
    require_extras("sentencepiece")
    import sentencepiece

    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_input_lines(words),
            input_format="tsv",
            model_writer=model,
            vocab_size=size + 1,
            user_defined_symbols=[_END_OF_WORD],
            hard_vocab_limit=False,
            required_chars=_ASCII,
            byte_fallback=True,
            max_sentencepiece_length=32,
            allow_whitespace_only_pieces=True,
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            split_by_whitespace=False,  # these four: the text is split into words already
            split_by_unicode_script=False,
            split_by_number=False,
            split_digits=False,
            bos_id=-1,
            eos_id=-1,
            num_threads=_THREADS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _translate_error(error, size) from error

    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = []
    for i in range(processor.get_piece_size()):
        piece = processor.id_to_piece(i)
        if processor.is_byte(i) or processor.is_unknown(i) or piece == _END_OF_WORD:
            continue
        piece = piece.replace(_SPACE, " ").replace(_TAB, "\t")
        pieces.append((piece, processor.get_score(i)))
    return pieces


def _input_lines(words: Counter) -> Iterator[str]:
    """Yield the lines of SentencePiece's input: words and how often they stand in the text.

    SentencePiece tries as a piece what is followed by one thing in one place and by another elsewhere; a word alone
    would always be followed by the end of its line, and never be tried. So once it is followed by a symbol.
    """
    for word, count in sorted(words.items()):
        word = word.replace("\t", _TAB)
        if count > 1:
            yield f"{word}{_END_OF_WORD}\t1"
        yield f"{word}\t{max(1, count - 1)}"


def _translate_error(error: RuntimeError, size: int) -> UserError:
    """Return what SentencePiece's message means for the recipe."""
    too_small = re.search(r"smaller than required_chars\. \d+ vs (\d+)", str(error))
    if not too_small:
        return UserError(f"sentencepiece cannot train on this text: {error}; give it more")

    available = size - _PIECES_WITHOUT_TEXT
    characters = int(too_small[1]) - _COUNTED_WITHOUT_TEXT
    return UserError(
        f"tokenizer.vocab_size leaves {available:,} tokens beside the bytes and the special ones; the letters of the "
        f"text alone are {characters:,}: make it larger, or write tokenizer.algorithm=byte_level_bpe"
    )
