"""CPU time of taking tokens out of windows, against transformers' collator that masks a batch.

    python benchmarks/corruption.py

One core, windows of 512 tokens in batches of 16. Rounds are interleaved; the ratio is that of the medians.
"""

import time
from collections.abc import Callable
from statistics import median

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch.utils.data import Dataset
from transformers import DataCollatorForLanguageModeling, PreTrainedTokenizerFast, default_data_collator

from hf_llm.data.tokens.corruption import CorruptedWindows, SpanCorruption, TokenMasking

VOCABULARY, SPECIALS, LENGTH, WINDOWS, BATCH, ROUNDS = 32000, 120, 512, 256, 16, 9


class Windows(Dataset):
    """Windows of random words."""

    def __init__(self) -> None:
        ids = np.random.default_rng(0).integers(SPECIALS, VOCABULARY, (WINDOWS, LENGTH))
        self.items = [{"input_ids": torch.from_numpy(row)} for row in ids]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> dict[str, torch.Tensor]:
        return self.items[i]


def seconds(windows: Dataset, collate: Callable) -> float:
    started = time.process_time()
    for start in range(0, WINDOWS, BATCH):
        collate([windows[i] for i in range(start, start + BATCH)])
    return time.process_time() - started


def main() -> None:
    torch.set_num_threads(1)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1", mask_token="w4")
    windows = Windows()
    masked = TokenMasking(4, np.arange(VOCABULARY) >= SPECIALS)
    spans = SpanCorruption(np.arange(10, 110), eos_token_id=1, pad_token_id=0)
    ways = {
        "transformers' collator, masked": (windows, DataCollatorForLanguageModeling(tokenizer)),
        "masked": (CorruptedWindows(windows, masked), default_data_collator),
        "span corruption": (CorruptedWindows(windows, spans), default_data_collator),
    }
    rounds = [{name: seconds(*way) for name, way in ways.items()} for _ in range(ROUNDS)]
    first = median(found["transformers' collator, masked"] for found in rounds)
    for name in ways:
        taken = median(found[name] for found in rounds)
        print(f"{name:<32} {taken / WINDOWS * 1e6:6.0f} us a window   {taken / first:.2f}")


if __name__ == "__main__":
    main()
