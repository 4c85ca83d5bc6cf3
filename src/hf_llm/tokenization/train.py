"""Train a tokenizer on a bounded sample of text: byte-level BPE, or Unigram (`hf_llm.tokenization.unigram`).

Byte-level: every text has an encoding and decoding gives it back exactly. Text is first cut into words by a pattern in
the style of GPT-4's, with every digit alone (as Llama-2 and Qwen do: a number's tokens are its digits, so that a small
vocabulary is not spent on numbers and places line up in arithmetic) and runs of white space in one piece (indentation
costs one token). It is the pattern of Qwen2 and 3, so an exported model's tokenizer is one that inference engines know.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hf_llm.core.errors import UserError
from hf_llm.tokenization.sentinel_tokens import MASK
from hf_llm.tokenization.unigram import train_unigram

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

PAD, END_OF_TEXT, TURN_START, TURN_END = "<|pad|>", "<|endoftext|>", "<|im_start|>", "<|im_end|>"
SPARE = 12  # reserved tokens at least: a later stage names one without resizing the embeddings
MULTIPLE = 64  # of the vocabulary: matrix units want it (nanoGPT measured +25% at 50304 against 50257)

WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"  # English endings
    r"|[^\r\n\p{L}\p{N}]?\p{L}+"  # letters, with one character before them: a space mostly
    r"|\p{N}"  # each digit alone
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*"  # signs, with the line end after them
    r"|\s*[\r\n]+"  # blank lines
    r"|\s+(?!\S)|\s+"  # indentation, but its last space, which belongs to the word
)
_ENDLESS_WORD = re.compile(r"[^\W\d_]{256,}")  # base64 and the like: BPE keeps every pair of a word in memory


@dataclass
class TokenizerSection:
    """The `tokenizer` section."""

    vocab_size: int = field(default=32768, metadata={"help": "tokens in all, rounded up to a multiple of 64"})
    algorithm: Literal["byte_level_bpe", "unigram"] = field(
        default="byte_level_bpe", metadata={"help": "unigram: as SentencePiece trains it"}
    )
    sample_bytes: int = field(
        default=200_000_000, metadata={"help": "text of the train split to learn from, divided by corpus.shares"}
    )
    data: list[str] | None = field(
        default=None, metadata={"help": "files or folders to learn from instead, read as corpus.sources are"}
    )
    chat_template: str | None = field(
        default=None, metadata={"help": "chatml, or the path of a Jinja template; else that of `use`, or chatml"}
    )
    use: str | None = field(
        default=None,
        metadata={"help": "a tokenizer to take instead: folder, Hub id, SentencePiece .model or .tiktoken file"},
    )
    pattern: str | None = field(
        default=None, metadata={"help": "what cuts words for a .tiktoken file; cl100k_base's if left out"}
    )
    compare: list[str] | None = field(
        default=None, metadata={"help": "tokenizers to report beside it; GPT-2's where it is in the local cache"}
    )

    def __post_init__(self) -> None:
        smallest = 256 + MULTIPLE
        if self.vocab_size < smallest:
            raise ValueError(f"vocab_size is {self.vocab_size}; a byte-level vocabulary has at least {smallest} tokens")
        if self.sample_bytes < 1:
            raise ValueError(f"sample_bytes is {self.sample_bytes}; it has to be positive")
        if self.use and self.data:
            raise ValueError("`use` takes a tokenizer as it is, `data` is what one is learnt from; leave one out")
        if self.pattern and not (self.use or "").endswith(".tiktoken"):
            raise ValueError("`pattern` belongs to a .tiktoken file in `use`; leave it out")


def train_tokenizer(
    texts: Iterable[str], section: TokenizerSection, gaps: list[str] | None = None
) -> "PreTrainedTokenizerFast":
    """Learn a tokenizer from the first `sample_bytes` of `texts`, with our special tokens and chat template, and those
    of `gaps` (`hf_llm.tokenization.sentinel_tokens`) for a model that fills gaps.

    Raises UserError where the text is too small for the vocabulary, with the largest one that it is enough for.
    """
    from transformers import PreTrainedTokenizerFast

    size = -(-section.vocab_size // MULTIPLE) * MULTIPLE
    specials = special_tokens(size - section.vocab_size, gaps or [])
    if gaps and 256 + len(specials) > size:
        raise UserError(
            f"tokenizer.vocab_size: {section.vocab_size} is too few for 256 bytes and {len(specials)} special tokens, "
            f"{gaps[0]} among them, which this model_type needs; write {256 + len(specials) + MULTIPLE} or more"
        )
    sample = _sample(texts, section.sample_bytes)
    if section.algorithm == "unigram":
        tokenizer = train_unigram(sample, size, specials, WORDS)
    else:
        tokenizer = _empty_tokenizer()
        tokenizer.train_from_iterator(sample, _trainer(size, specials))
    found = tokenizer.get_vocab_size()
    if found < size:
        largest = (found - (size - section.vocab_size)) // MULTIPLE * MULTIPLE
        remedy = f"write tokenizer.vocab_size={largest} (the largest it is enough for)"
        if largest < 256 + MULTIPLE:
            remedy = "give it more text"
        raise UserError(f"the corpus is too small for a vocabulary of {size:,}: {found:,} tokens found; {remedy}")
    named = {"pad_token": PAD, "eos_token": END_OF_TEXT, **_ends(tokenizer, gaps or [])}
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **named,
        extra_special_tokens=[token for token in specials if token not in named.values()],
        clean_up_tokenization_spaces=False,
        chat_template=chat_template(section.chat_template or "chatml"),
    )


def special_tokens(fill: int, gaps: Iterable[str] = ()) -> list[str]:
    """Padding, end of text, the chat's tokens, those of `gaps`, and reserved ones: `SPARE`, and `fill` to round the
    vocabulary up."""
    return [PAD, END_OF_TEXT, TURN_START, TURN_END, *gaps, *(f"<|reserved_{i}|>" for i in range(SPARE + fill))]


def _ends(tokenizer: "Tokenizer", gaps: list[str]) -> dict[str, str]:
    """Let the tokenizer of a model that fills gaps set the ends of a text, as in the stream it learns from: an end of
    text after each, and before it, where a masked model has its [CLS]. Returns the tokens that have a name by that.
    """
    from tokenizers import processors

    if not gaps:
        return {}
    start, ids = f"{END_OF_TEXT} " if MASK in gaps else "", [(END_OF_TEXT, tokenizer.token_to_id(END_OF_TEXT))]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start}$A {END_OF_TEXT}", pair=f"{start}$A {END_OF_TEXT} $B {END_OF_TEXT}", special_tokens=ids
    )
    return {"mask_token": MASK, "cls_token": END_OF_TEXT, "sep_token": END_OF_TEXT} if MASK in gaps else {}


def chat_template(name: str) -> str:
    """The text of the chat template: ours for `chatml`, or the file at a path."""
    path = Path(__file__).with_name("chat_template.jinja") if name == "chatml" else Path(name).expanduser()
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"tokenizer.chat_template: {name} is neither `chatml` nor a readable file: {error}") from None


def _empty_tokenizer() -> "Tokenizer":
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _trainer(size: int, specials: list[str]) -> object:
    from tokenizers import pre_tokenizers, trainers

    return trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )


def _sample(texts: Iterable[str], limit: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield _ENDLESS_WORD.sub(" ", text)
        taken += len(text.encode("utf-8"))
        if taken >= limit:
            return
