import json
import pickle

import numpy as np
import pytest
import torch

from hf_llm.data.windows import TokenWindows
from hf_llm.errors import UserError


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
    assert copy._maps is None
    torch.manual_seed(1)
    assert torch.equal(copy[4]["input_ids"], first) and torch.equal(windows[4]["input_ids"], first)
    assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
    first[0] = -5
    assert windows[4]["input_ids"][0] == 36


def test_workers_of_a_data_loader_read_the_same(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [40, 60]), "train", 10)
    loader = torch.utils.data.DataLoader(windows, batch_size=5, num_workers=2)
    assert torch.cat([batch["input_ids"].flatten() for batch in loader]).tolist() == list(range(100))


def test_an_evaluation_can_be_limited_to_a_budget(tmp_path):
    windows = TokenWindows(tokens_folder(tmp_path, [40, 60]), "train", 10)
    fewer = windows.limited(35)
    assert (len(fewer), fewer.tokens, fewer.bytes, fewer.bytes_per_token) == (3, 30, 90, 3.0)
    assert len(windows) == 10 and len(windows.limited(1)) == 1 and len(windows.limited(10**9)) == 10
    with pytest.raises(IndexError):
        fewer[3]


def test_too_few_tokens_for_one_window_is_an_error(tmp_path):
    with pytest.raises(UserError, match="has 9 tokens, too few for one window of 10"):
        TokenWindows(tokens_folder(tmp_path, [4, 5]), "train", 10)
    with pytest.raises(UserError, match=r"the test split of .* has 0 tokens"):
        TokenWindows(tmp_path, "test", 10)
