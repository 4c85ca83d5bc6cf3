import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hf_llm.data.shards import dtype_for, read_index, write_shard
from hf_llm.errors import UserError

END = "<|endoftext|>"


def byte_tokenizer(extra=0):
    """A token per byte; `extra` unused tokens push the letter tokens' ids up."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {END: 0} | {f"<unused {i}>": i + 1 for i in range(extra)}
    vocab |= {letter: len(vocab) + i for i, letter in enumerate(alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END])
    return tokenizer


def write(path, texts, tokenizer, dtype=np.uint16, limit=None):
    *_, counts = write_shard(path, texts, tokenizer, 0, np.dtype(dtype), limit)
    return np.fromfile(path, dtype), counts


def test_a_shard_is_every_document_and_one_end_after_each(tmp_path):
    texts = [f"Document {i}: naïve 🙂" for i in range(1500)]  # more than two batches
    tokenizer = byte_tokenizer()
    ids, counts = write(tmp_path / "a.bin", texts, tokenizer)
    ends = np.flatnonzero(ids == 0)
    assert len(ends) == counts["documents"] == 1500 and counts["tokens"] == len(ids)
    assert counts["bytes"] == sum(len(text.encode()) for text in texts) == len(ids) - 1500
    assert [tokenizer.decode(part[part != 0]) for part in np.split(ids, ends + 1)[:-1]] == texts


def test_a_special_token_in_a_text_is_text(tmp_path):
    tokenizer = byte_tokenizer()
    ids, counts = write(tmp_path / "a.bin", [f"before {END} after"], tokenizer)
    assert list(ids).count(0) == 1 and counts["documents"] == 1
    assert tokenizer.decode(ids[:-1]) == f"before {END} after"


def test_a_limit_stops_after_the_document_that_reaches_it(tmp_path):
    ids, counts = write(tmp_path / "a.bin", ["12345", "123", "1234567"], byte_tokenizer(), limit=7)
    assert len(ids) == 10 and counts["documents"] == 2


def test_a_large_vocabulary_takes_four_bytes(tmp_path):
    assert dtype_for(65_536) == np.uint16 and dtype_for(65_537) == np.uint32
    tokenizer = byte_tokenizer(extra=70_000)
    ids, _ = write(tmp_path / "a.bin", ["hello"], tokenizer, dtype_for(tokenizer.get_vocab_size()))
    ids = np.fromfile(tmp_path / "a.bin", np.uint32)
    assert ids.min() == 0 and ids.max() > 70_000
    assert tokenizer.decode(ids[:-1]) == "hello"


def test_a_shard_has_no_name_before_it_is_whole(tmp_path):
    writing = write_shard(tmp_path / "a.bin", ["text"] * 2000, byte_tokenizer(), 0, np.dtype(np.uint16))
    next(writing)
    assert not (tmp_path / "a.bin").exists()
    list(writing)
    assert (tmp_path / "a.bin").exists()


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"python -m hf_llm\.tokenize_corpus"):
        read_index(tmp_path)
