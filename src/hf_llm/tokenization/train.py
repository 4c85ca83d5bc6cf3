"""Train a tokenizer on a bounded sample of text: byte-level BPE, or Unigram (`hf_llm.tokenization.unigram`).

Byte-level means that every text can be encoded, and that decoding returns it exactly. Text is first split into words
(`WORD_PATTERN`, the pattern of Qwen2 and Qwen3, so that inference engines know the tokenizer of an exported model):

- every digit is a token, as in Llama 2 and Qwen: the vocabulary is not spent on numbers, and the places of numbers line
  up in arithmetic;
- a run of white space is one piece, so indentation costs one token.
"""

import math
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_llm.core.errors import UserError
from hf_llm.tokenization.sentinel_tokens import MASK
from hf_llm.tokenization.text_boundaries import set_boundaries
from hf_llm.tokenization.unigram import train_unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

PAD = "<|pad|>"
END_OF_TEXT = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"
MIN_RESERVED_TOKENS = 12  # a later stage can give one a meaning without resizing the embeddings
VOCABULARY_MULTIPLE = 64  # matrix units are faster with it (nanoGPT measured +25% at 50304 against 50257)
BYTE_TOKENS = 256

WORD_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English endings
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with one character before them, mostly a space
    r"|\p{N}"  # each digit alone
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs, with the line end after them
    r"|\s*[\r\n]+"  # blank lines
    r"|\s+(?!\S)|\s+"  # indentation, without its last space, which belongs to the next word
)
MAX_WORD_CHARS = 256
# As many letters as a word may have, with more after them: Chinese without punctuation, DNA.
_WORD_TO_CUT = re.compile(rf"[^\W\d_]{{{MAX_WORD_CHARS}}}(?=[^\W\d_])")


@dataclass
class TokenizerSection:
    """The `tokenizer` section of a recipe."""

    vocab_size: int = 32768
    """Number of tokens, special tokens included, rounded up to a multiple of 64."""
    algorithm: Literal["byte_level_bpe", "unigram"] = "byte_level_bpe"
    """How the vocabulary is trained; unigram as SentencePiece trains it."""
    sample_bytes: int = 200_000_000
    """Bytes to train on, of the train split (divided among the sources by corpus.shares) or evenly of `data`."""
    data: list[str] | None = None
    """Files or folders to train on instead of the corpus, read as corpus.sources are."""
    chat_template: str | None = None
    """`chatml`, or the path of a Jinja template; where it is left out, the template of `use`, or chatml."""
    use: str | None = None
    """An existing tokenizer to use instead: a folder, a Hub id, a SentencePiece .model or a .tiktoken file."""
    pattern: str | None = None
    """Pattern that splits text into words for a .tiktoken file; cl100k_base's where it is left out."""
    compare: list[str] | None = None
    """Tokenizers to report beside it; GPT-2's where it is left out and the local Hub cache has that."""

    def __post_init__(self) -> None:
        smallest = BYTE_TOKENS + VOCABULARY_MULTIPLE
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size is {self.vocab_size}; a byte-level vocabulary has at least {smallest} tokens")
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes is {self.sample_bytes}; it has to be positive")
        if self.use and self.data:
            raise ValueError("`use` takes a tokenizer as it is, `data` is what one is trained on; leave one out")
        if self.pattern and not (self.use or "").endswith(".tiktoken"):
            raise ValueError("`pattern` belongs to a .tiktoken file in `use`; leave it out")


def train_tokenizer(
    texts: Iterable[str], section: TokenizerSection, denoising_tokens: Sequence[str] = ()
) -> "PreTrainedTokenizerFast":
    """Train a tokenizer on the first `sample_bytes` of `texts`, with our special tokens and chat template.

    `denoising_tokens` are the mask or sentinel tokens (`hf_llm.tokenization.sentinel_tokens`) for a model that restores
    masked text. Raises UserError if the text is too little for the vocabulary, with the largest size it is enough for.
    """
    from transformers import PreTrainedTokenizerFast

    size = math.ceil(section.vocab_size / VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE
    fill = size - section.vocab_size  # reserved tokens that round the vocabulary up
    specials = special_tokens(fill, denoising_tokens)

    smallest = BYTE_TOKENS + len(specials)
    if denoising_tokens and smallest > size:
        raise UserError(
            f"tokenizer.vocab_size: {section.vocab_size} is too few for 256 bytes and {len(specials)} special tokens, "
            f"{denoising_tokens[0]} among them, which this model_type needs; write {smallest + VOCABULARY_MULTIPLE} or "
            "more"
        )

    sample = _take_sample(texts, section.sample_bytes)
    if section.algorithm == "unigram":
        tokenizer = train_unigram(sample, size, specials, WORD_PATTERN)
    else:
        tokenizer = _build_untrained_bpe()
        tokenizer.train_from_iterator(sample, _build_bpe_trainer(size, specials))
    _check_vocabulary_size(tokenizer.get_vocab_size(), size, fill)

    # The special tokens that transformers has a name for; all others are "extra".
    named = {"pad_token": PAD, "eos_token": END_OF_TEXT}
    if denoising_tokens:
        # The boundaries that a text has in the training data; the one before it for a masked model, as BERT's [CLS].
        start = [END_OF_TEXT] if MASK in denoising_tokens else []
        set_boundaries(tokenizer, start, [END_OF_TEXT])
    if MASK in denoising_tokens:
        named |= {"mask_token": MASK, "cls_token": END_OF_TEXT, "sep_token": END_OF_TEXT}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        extra_special_tokens=[token for token in specials if token not in named.values()],
        clean_up_tokenization_spaces=False,
        chat_template=load_chat_template(section.chat_template or "chatml"),
    )


def _check_vocabulary_size(trained_size: int, size: int, fill: int) -> None:
    """Raise UserError if training gave fewer tokens than `size`, of which `fill` only round the vocabulary up."""
    if trained_size >= size:
        return

    largest = (trained_size - fill) // VOCABULARY_MULTIPLE * VOCABULARY_MULTIPLE
    remedy = f"write tokenizer.vocab_size={largest} (the largest it is enough for)"
    if largest < BYTE_TOKENS + VOCABULARY_MULTIPLE:
        remedy = "give it more text"
    raise UserError(f"the corpus is too small for a vocabulary of {size:,}: {trained_size:,} tokens found; {remedy}")


def special_tokens(fill: int, denoising_tokens: Iterable[str] = ()) -> list[str]:
    """Return all special tokens: padding, end of text, those of chat turns, the denoising tokens, and reserved ones.

    There are `MIN_RESERVED_TOKENS` reserved tokens, and `fill` more that round the vocabulary up.
    """
    reserved = [f"<|reserved_{number}|>" for number in range(MIN_RESERVED_TOKENS + fill)]
    return [PAD, END_OF_TEXT, TURN_START, TURN_END, *denoising_tokens, *reserved]


def load_chat_template(name: str) -> str:
    """Read a chat template: ours for `chatml`, else the file at that path. Raises UserError."""
    path = Path(name).expanduser()
    if name == "chatml":
        path = Path(__file__).with_name("chat_template.jinja")
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.chat_template: {name} is neither `chatml` nor a readable file: {error}") from None


def _build_untrained_bpe() -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _build_bpe_trainer(size: int, specials: list[str]) -> "BpeTrainer":
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=bool(sys.stderr and sys.stderr.isatty()),  # in a log file it writes empty lines
    )


def _take_sample(texts: Iterable[str], limit: int) -> Iterator[str]:
    """Yield texts until they reach `limit` bytes, cut within words of more than `MAX_WORD_CHARS` letters.

    Training holds every distinct word in memory, and in writing without spaces a whole paragraph is one.
    """
    size = 0
    for text in texts:
        start = 0
        for match in _WORD_TO_CUT.finditer(text):
            yield text[start : match.end()]
            start = match.end()
        yield text[start:]

        size += len(text.encode("utf-8"))
        if size >= limit:
            return
