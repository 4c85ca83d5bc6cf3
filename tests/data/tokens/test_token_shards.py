import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.token_shards import (
    Documents,
    read_documents,
    read_index,
    smallest_id_dtype,
    tokenize_documents,
    write_shards,
)

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


def batches(texts, tokenizer, dtype=np.uint16):
    """The texts tokenised, in batches of at most 600 documents."""
    parts = [Documents.from_texts(texts[i : i + 600]) for i in range(0, len(texts), 600)]
    return tokenize_documents(parts, tokenizer, 0, np.dtype(dtype))


def write(path, texts, tokenizer, dtype=np.uint16, limit=None):
    *_, (counts,) = write_shards(path.parent, path.stem, batches(texts, tokenizer, dtype), limit=limit)
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
    assert smallest_id_dtype(65_536) == np.uint16 and smallest_id_dtype(65_537) == np.uint32
    tokenizer = byte_tokenizer(extra=70_000)
    ids, _ = write(tmp_path / "a.bin", ["hello"], tokenizer, smallest_id_dtype(tokenizer.get_vocab_size()))
    ids = np.fromfile(tmp_path / "a.bin", np.uint32)
    assert ids.min() == 0 and ids.max() > 70_000
    assert tokenizer.decode(ids[:-1]) == "hello"


def test_a_shard_has_no_name_before_it_is_whole(tmp_path):
    writing = write_shards(tmp_path, "a", batches(["text"] * 2000, byte_tokenizer()))
    next(writing)
    assert not (tmp_path / "a.bin").exists()
    list(writing)
    assert (tmp_path / "a.bin").exists()


def test_a_folder_without_shards_says_how_to_make_them(tmp_path):
    with pytest.raises(UserError, match=r"python -m hf_llm\.tokenize_corpus"):
        read_index(tmp_path)


class ByLength:
    """Short documents in one file, long ones in another."""

    labels = ({"stage": 0}, {"stage": 1}, {"stage": 2})

    def route_documents(self, documents, tokens):
        return (tokens.lengths > 5).astype(np.int64)


def test_streams_divide_the_documents_and_keep_their_order(tmp_path):
    texts = ["ab", "abcdefgh", "cd", "ijklmnop", "ef"] * 300
    tokenizer = byte_tokenizer()
    *_, entries = write_shards(tmp_path, "a", batches(texts, tokenizer), ByLength())
    assert [(entry["file"], entry["stage"], entry["documents"]) for entry in entries] == [
        ("a.0.bin", 0, 900),
        ("a.1.bin", 1, 600),
    ]
    for entry, letters in zip(entries, ("ab cd ef", "abcdefgh ijklmnop"), strict=True):
        ids = np.fromfile(tmp_path / entry["file"], np.uint16)
        parts = np.split(ids, np.flatnonzero(ids == 0) + 1)[:-1]
        assert [tokenizer.decode(part[:-1]) for part in parts] == letters.split() * 300
        assert len(ids) == entry["tokens"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.0.bin", "a.1.bin"]


def test_tokens_are_counted_by_source_and_language(tmp_path):
    documents = Documents(["abc", "de", "f"], np.array([3, 2, 1]), ["web", "books", "web"], ["en", "en", "de"])
    *_, (entry,) = write_shards(
        tmp_path, "a", tokenize_documents([documents], byte_tokenizer(), 0, np.dtype(np.uint16))
    )
    assert entry["sources"] == {"books": 3, "web": 6} and entry["languages"] == {"de": 2, "en": 7}


def test_a_fault_while_reading_comes_through_and_leaves_no_shard(tmp_path):
    def reading():
        yield Documents.from_texts(["abc"])
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(write_shards(tmp_path, "a", tokenize_documents(reading(), byte_tokenizer(), 0, np.dtype(np.uint16))))
    assert not (tmp_path / "a.bin").exists()


def test_documents_of_a_corpus_file_come_back_whole(tmp_path):
    rows = [{"text": "naïve " * n, "source": f"s{n % 3}", "language": "en", "id": str(n)} for n in range(2000)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=700)
    batches = list(read_documents(tmp_path / "a.parquet"))
    assert len(batches) > 3
    assert [text for documents in batches for text in documents.texts] == [row["text"] for row in rows]
    assert [name for documents in batches for name in documents.sources] == [row["source"] for row in rows]
    assert np.concatenate([documents.bytes for documents in batches]).tolist() == [7 * n for n in range(2000)]
