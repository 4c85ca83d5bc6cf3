import json
import pickle

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_llm.core.errors import UserError
from hf_llm.data.tokens.byte_lengths import token_byte_lengths
from hf_llm.data.tokens.token_dataset import TokenWindows
from tests.tiny_models import tiny_tokenizer


def tokens_folder(folder, sizes, dtype="uint16", split="train"):
    """Shards with these numbers of tokens, holding 0, 1, 2, ... in order; three bytes of text per token."""
    start, shards = 0, []
    for number, size in enumerate(sizes):
        np.arange(start, start + size).astype(dtype).tofile(folder / f"{split}-{number:05d}.bin")
        shards.append({"file": f"{split}-{number:05d}.bin", "tokens": size, "documents": 1, "bytes": 3 * size})
        start += size
    (folder / "index.json").write_text(json.dumps({"dtype": dtype, "splits": {split: shards}}))
    return folder


@pytest.mark.parametrize("sizes", [[100], [7, 93], [1, 1, 1, 50, 2, 45], [10, 10, 10, 10]])
@pytest.mark.parametrize("length", [1, 3, 10, 33])
def test_windows_are_the_tokens_in_order_across_shards(tmp_path, sizes, length):
    windows = TokenWindows(tokens_folder(tmp_path, sizes), "train", length)
    total = sum(sizes)
    assert len(windows) == total // length and windows.tokens == total
    joined = torch.cat([windows[i]["input_ids"] for i in range(len(windows))])
    assert joined.tolist() == list(range(total // length * length))
    assert all(torch.equal(item["input_ids"], item["labels"]) for item in windows)
    assert joined.dtype == torch.int64


def test_ids_beyond_two_bytes_come_back(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [70_000, 30_000], "uint32"), "train", 50_000)
    assert windows[1]["input_ids"].tolist() == list(range(50_000, 100_000))


def test_an_item_does_not_depend_on_what_was_read_before_or_where(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [40, 60]), "train", 9)
    first = windows[4]["input_ids"]
    copy = pickle.loads(pickle.dumps(windows))
    assert not copy._streams[0]._maps
    torch.manual_seed(1)
    assert torch.equal(copy[4]["input_ids"], first) and torch.equal(windows[4]["input_ids"], first)
    assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
    first[0] = -5
    assert windows[4]["input_ids"][0] == 36


def test_more_shards_than_files_may_be_open(tmp_path):
    resource = pytest.importorskip("resource")
    windows = TokenWindows(tokens_folder(tmp_path, [3] * 400), "train", 3)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, limits[1]))
    try:
        assert [int(windows[i]["input_ids"][0]) for i in range(400)] == list(range(0, 1200, 3))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_workers_of_a_data_loader_read_the_same(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [40, 60]), "train", 10)
    loader = torch.utils.data.DataLoader(windows, batch_size=5, num_workers=2)
    assert torch.cat([batch["input_ids"].flatten() for batch in loader]).tolist() == list(range(100))


def test_an_evaluation_can_be_limited_to_a_budget(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [40, 60]), "train", 10)
    fewer = windows.limit_tokens(35)
    assert (len(fewer), fewer.tokens, fewer.bytes, fewer.bytes_per_token) == (3, 30, 90, 3.0)
    assert len(windows) == 10 and len(windows.limit_tokens(1)) == 1 and len(windows.limit_tokens(10**9)) == 10
    with pytest.raises(IndexError):
        fewer[3]


def write_texts(folder, texts, tokenizer, split="test"):
    """One shard of these texts, an end of text after each, with the bytes of all together."""
    ids = []
    for text in texts:
        ids += [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    np.array(ids, "uint16").tofile(folder / f"{split}-00000.bin")
    size = sum(len(text.encode()) for text in texts)
    shard = {"file": f"{split}-00000.bin", "tokens": len(ids), "documents": len(texts), "bytes": size}
    (folder / "index.json").write_text(json.dumps({"dtype": "uint16", "splits": {split: [shard]}}))
    return ids


def unigram_tokenizer():
    """Characters as tokens, spaces written as in SentencePiece."""
    letters = [*sorted(set("".join(MIXED).replace(" ", "▁"))), "▁the", "ing"]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((letter, -1.0) for letter in letters)]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    backend.decoder = decoders.Metaspace(prepend_scheme="never")
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")


MIXED = ["the king is walking along the river " * 5, "国王沿着河边走" * 12, "le garçon mange une pêche à la crème " * 4]


@pytest.mark.parametrize("make_tokenizer", [tiny_tokenizer, unigram_tokenizer])
@pytest.mark.parametrize("budget", [64, 128, 10**6])
def test_bits_per_byte_are_of_the_bytes_that_are_predicted(tmp_path, make_tokenizer, budget):
    tokenizer = make_tokenizer()
    write_texts(tmp_path, MIXED, tokenizer)
    windows = TokenWindows(tmp_path, "test", 32).limit_tokens(budget)
    by_average = windows.bytes_per_token
    windows.measure_bytes(token_byte_lengths(tokenizer))

    # The text before a window's end less that before its second token; an end of text has no bytes.
    size, tokens = 0, 0
    for window in windows:
        labels = window["labels"][1:]
        for number in labels.tolist():
            token = tokenizer.convert_ids_to_tokens(number)
            if number != tokenizer.eos_token_id:
                size += len(token) if make_tokenizer is tiny_tokenizer else len(token.replace("▁", " ").encode())
        tokens += len(labels)
    assert windows.bytes_per_token == pytest.approx(size / tokens, rel=1e-9)
    if make_tokenizer is unigram_tokenizer and budget == 64:
        assert by_average > 1.1 * windows.bytes_per_token  # the first windows are English alone


def test_too_few_tokens_for_one_window_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has 9 tokens, too few for one window of 10"):
        TokenWindows(tokens_folder(tmp_path, [4, 5]), "train", 10)
    with pytest.raises(UserError, match=r"the test split of .* has 0 tokens"):
        TokenWindows(tmp_path, "test", 10)


def mixed_folder(folder, streams):
    """StreamRouter of `(stage, source, tokens, planned)`, each in two shards, holding 1000 x its number and on."""
    shards, plan = [], []
    for number, (stage, source, tokens, planned) in enumerate(streams):
        ids = np.arange(1000 * number, 1000 * number + tokens).astype("uint16")
        for part, piece in enumerate(np.split(ids, [tokens // 3])):
            name = f"train-{part}.{number}.bin"
            piece.tofile(folder / name)
            counts = {"tokens": len(piece), "documents": 1, "bytes": (number + 2) * len(piece)}
            shards.append({"file": name, "stage": stage, "source": source, **counts})
        plan.append({"stage": stage, "source": source, "tokens": tokens, "planned": planned})
    (folder / "index.json").write_text(json.dumps({"dtype": "uint16", "splits": {"train": shards}, "plan": plan}))
    return folder


def test_a_mix_serves_every_token_as_often_as_its_plan_says(tmp_path):
    folder = mixed_folder(tmp_path, [(0, "web", 600, 600), (0, "books", 90, 225), (0, "code", 300, 60)])
    windows = TokenWindows(folder, "train", 10)
    assert len(windows) == 60 + 22 + 6 and not windows.has_stages
    assert windows.tokens == 885 and windows.bytes == 600 * 2 + 225 * 3 + 60 * 4
    ids, counts = np.unique(torch.stack([item["input_ids"] for item in windows]).numpy(), return_counts=True)
    of = lambda number: counts[(ids >= 1000 * number) & (ids < 1000 * (number + 1))]  # noqa: E731
    assert len(of(0)) == 600 and set(of(0)) == {1}
    assert len(of(1)) == 90 and set(of(1)) == {2, 3} and sum(of(1)) == 220
    assert len(of(2)) == 60 and set(of(2)) == {1}


def test_the_part_of_a_source_that_is_taken_follows_from_the_seed_alone(tmp_path):
    folder = mixed_folder(tmp_path, [(0, "web", 900, 90), (0, "books", 300, 300)])
    first, again, other = (TokenWindows(folder, "train", 10, seed) for seed in (1, 1, 2))
    everything = [torch.stack([item["input_ids"] for item in windows]) for windows in (first, again, other)]
    assert torch.equal(everything[0], everything[1]) and not torch.equal(everything[0], everything[2])


def test_a_source_smaller_than_a_window_fills_one_by_repetition(tmp_path):
    windows = TokenWindows(mixed_folder(tmp_path, [(0, "tiny", 4, 16)]), "train", 10)
    assert len(windows) == 1
    ids = windows[0]["input_ids"]
    assert torch.equal((ids[1:] - ids[:-1]) % 4, torch.ones(9, dtype=torch.int64))


@pytest.mark.parametrize("length", [1, 7, 10])
def test_a_curriculum_serves_stage_after_stage_each_window_once(tmp_path, length):
    streams = [(0, "web", 300, 300), (0, "books", 100, 100), (1, "web", 200, 200), (1, "books", 100, 200)]
    windows = TokenWindows(mixed_folder(tmp_path, streams), "train", length, seed=3)
    counts = [planned // length for *_, planned in streams]
    assert windows.has_stages and len(windows) == sum(counts)
    places = [windows._locate_window(i) for i in range(len(windows))]
    assert len(set(places)) == len(windows)
    stages = [streams[number][0] for number, _ in places]
    assert stages == sorted(stages)
    assert [windows.find_stage(i) for i in range(len(windows))] == stages
    assert places != sorted(places)


def test_within_a_stage_every_batch_holds_the_sources_in_their_shares(tmp_path):
    streams = [(0, "web", 600, 600), (0, "books", 200, 200), (1, "web", 900, 900)]
    windows = TokenWindows(mixed_folder(tmp_path, streams), "train", 1, seed=5)
    for start in range(0, 800 - 40, 40):
        books = sum(windows._locate_window(i)[0] == 1 for i in range(start, start + 40))
        assert 9 <= books <= 11


def test_a_stage_goes_on_in_a_source_where_the_stages_before_have_stopped(tmp_path):
    folder = mixed_folder(tmp_path, [(0, "web", 600, 400), (0, "books", 200, 100)])
    index = json.loads((folder / "index.json").read_text())
    plan = [("web", 0, 400, 0), ("books", 0, 100, 0), ("books", 1, 100, 100), ("web", 1, 50, 400)]
    index["plan"] = [
        {
            "source": source,
            "stage": stage,
            "tokens": 600 if source == "web" else 200,
            "planned": planned,
            "passed": passed,
        }
        for source, stage, planned, passed in plan
    ]
    (folder / "index.json").write_text(json.dumps(index))
    windows = TokenWindows(folder, "train", 10, seed=4)
    assert len(windows) == 65 and windows.has_stages and windows.last_stage_start == 50
    ids = np.concatenate([item["input_ids"].numpy() for item in windows])
    assert len(set(ids)) == len(ids)  # nothing twice
    assert set(range(1000, 1200)) <= set(ids)  # all books
    late = ids[500:]
    assert (late >= 1000).sum() == 100 and (late < 1000).sum() == 50
    books_in_a_batch = [sum(late[start : start + 30] >= 1000) for start in range(0, 150, 30)]
    assert all(count in (10, 20, 30) for count in books_in_a_batch)
