import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from hf_llm.core.errors import UserError
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.data.tokens.corruption import (
    CorruptedWindows,
    SpanCorruption,
    TokenMasking,
    restore_spans,
    split_target_spans,
)

VOCABULARY, SPECIALS, MASK, END = 1000, 120, 4, 1
SENTINELS = np.arange(10, 110)


class Windows(Dataset):
    """Random words, an end of text among them here and there."""

    def __init__(self, count: int, length: int):
        self.length = length
        self.rows = np.random.default_rng(0).integers(SPECIALS, VOCABULARY, (count, length))
        self.rows[:, ::17] = END

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        ids = torch.from_numpy(self.rows[i].copy())
        return {"input_ids": ids, "labels": ids.clone()}


def masked(**changes) -> TokenMasking:
    return TokenMasking(MASK, np.arange(VOCABULARY) >= SPECIALS, **changes)


def spans(**changes) -> SpanCorruption:
    return SpanCorruption(SENTINELS, END, 0, **changes)


def everything(windows: CorruptedWindows) -> list[dict[str, torch.Tensor]]:
    return [windows[i] for i in range(len(windows))]


def test_of_each_window_15_percent_are_to_predict_and_no_special_token_is():
    windows = Windows(50, 400)
    for item, row in zip(everything(CorruptedWindows(windows, masked())), windows.rows, strict=True):
        predicted = item["labels"] != IGNORE_INDEX
        assert predicted.sum() == 60
        assert (item["labels"][predicted].numpy() == row[predicted]).all()
        assert (row[predicted] >= SPECIALS).all()
        assert (item["input_ids"][~predicted].numpy() == row[~predicted]).all()


def test_80_percent_of_them_are_masked_10_another_word_and_10_as_they_were():
    items = everything(CorruptedWindows(Windows(400, 400), masked(share=0.3)))
    shown = torch.stack([item["input_ids"] for item in items])
    labels = torch.stack([item["labels"] for item in items])
    shown, true = shown[labels != IGNORE_INDEX], labels[labels != IGNORE_INDEX]
    assert len(true) == 400 * 120
    is_mask, same = shown == MASK, shown == true
    # Four standard deviations of a share of 48,000.
    assert is_mask.float().mean().item() == pytest.approx(0.8, abs=0.0075)
    assert same.float().mean().item() == pytest.approx(0.1, abs=0.006)
    others = shown[~is_mask & ~same]
    assert (others >= SPECIALS).all() and len(others.unique()) > 800


def test_every_place_and_every_word_has_its_turn():
    items = everything(CorruptedWindows(Windows(400, 100), masked()))
    counts = sum((item["labels"] != IGNORE_INDEX).long() for item in items)
    words = Windows(400, 100).rows[0] != END
    assert (counts[~words] == 0).all()
    assert counts[words].min() > 30 and counts[words].max() < 110  # 64 on average


def test_a_window_with_fewer_words_than_asked_for_gives_those_it_has():
    ids = np.full(20, END)
    ids[3] = 500
    assert (masked(share=0.5)(ids, np.random.default_rng(0))["labels"] != IGNORE_INDEX).sum() == 1
    assert (masked()(np.full(20, END), np.random.default_rng(0))["labels"] == IGNORE_INDEX).all()


def test_one_token_alone_is_always_shown_as_the_mask():
    for item in everything(CorruptedWindows(Windows(40, 50), masked(count=1, always=True))):
        assert (item["labels"] != IGNORE_INDEX).sum() == 1 == (item["input_ids"] == MASK).sum()


@pytest.mark.parametrize(("length", "share", "mean"), [(512, 0.15, 3), (512, 0.5, 10), (64, 0.15, 1), (2, 0.15, 3)])
def test_the_target_puts_back_the_text_exactly(length, share, mean):
    windows = Windows(30, length)
    corruption = spans(share=share, mean_span=mean)
    for item, row in zip(everything(CorruptedWindows(windows, corruption)), windows.rows, strict=True):
        text, target = (item[name].tolist()[:-1] for name in ("input_ids", "labels"))
        assert restore_spans(text, target, SENTINELS.tolist()) == row.tolist()
        assert item["input_ids"][-1] == item["labels"][-1] == END
        assert (len(item["input_ids"]), len(item["labels"])) == corruption.input_and_target_lengths(length)
        assert item["decoder_input_ids"].tolist() == [0, *item["labels"].tolist()[:-1]]


def test_spans_have_the_share_and_the_mean_length_of_the_paper_and_all_lengths():
    corruption, lengths = spans(), []
    assert corruption.count_masked(512) == (77, 26)
    for item in everything(CorruptedWindows(Windows(200, 512), corruption)):
        used = [token for token in item["input_ids"].tolist() if token in SENTINELS]
        assert used == SENTINELS[:26].tolist()
        lengths += [len(span) for span in split_target_spans(item["labels"].tolist()[:-1], used)]
    assert sum(lengths) == 200 * 77 and min(lengths) == 1 and max(lengths) > 10
    assert lengths.count(1) > lengths.count(2) > lengths.count(3) > lengths.count(4)


def test_too_few_sentinels_are_an_error_that_says_what_to_do():
    with pytest.raises(UserError, match=r"102 masked spans, and the tokenizer 100 sentinel tokens.*raise mean_span"):
        spans().check_sentinels(2048)
    spans(mean_span=4).check_sentinels(2048)


@pytest.mark.parametrize("corruption", [masked(), spans()])
def test_other_tokens_are_taken_in_every_epoch_and_the_same_ones_when_it_comes_again(corruption):
    windows = CorruptedWindows(Windows(8, 64), corruption, seed=3)
    epochs = []
    for epoch in (0, 1, 0):
        windows.set_epoch(epoch)
        epochs.append([item["input_ids"].tolist() for item in everything(windows)])
    assert epochs[0] == epochs[2]
    assert all(one != other for one, other in zip(*epochs[:2], strict=True))
    other_seed = CorruptedWindows(Windows(8, 64), corruption, seed=4)
    assert other_seed[0]["input_ids"].tolist() != epochs[0][0]
    assert windows[-1]["input_ids"].tolist() == epochs[0][-1]


@pytest.mark.parametrize("persistent", [False, True])
def test_any_number_of_workers_finds_the_same_also_in_later_epochs(persistent):
    windows = CorruptedWindows(Windows(12, 64), masked())
    apart = DataLoader(windows, batch_size=2, num_workers=2, persistent_workers=persistent)
    for epoch in range(3):
        windows.set_epoch(epoch)
        alone = DataLoader(windows, batch_size=3)
        ids = [torch.cat([batch["input_ids"] for batch in loader]) for loader in (alone, apart)]
        assert torch.equal(*ids), epoch


def test_spans_of_a_target_that_leaves_some_out_or_begins_anyhow():
    assert split_target_spans([7, 10, 1, 2, 12, 3], [10, 11, 12]) == [[1, 2], [], [3]]
    assert split_target_spans([], [10]) == [[]]
