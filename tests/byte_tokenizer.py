"""Our tokenizer with a token for each byte and no merges: ids that can be counted by hand."""

import json

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

TEXTS = [
    "Some sentences about ordinary things, enough of them to find a few pairs of letters that stand together often.",
    "Another sentence: the others were not enough, and the pairs that stand there are found in these words again.",
]


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """Ids 0 to 15 are special tokens, 16 to 271 the bytes in the order of GPT-2's table."""
    tokenizer = train_tokenizer(TEXTS * 20, TokenizerSection(vocab_size=320))
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    backend["model"]["merges"] = []
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(backend))
    return tokenizer
