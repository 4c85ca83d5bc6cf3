"""A model of a few thousand parameters and rows of random tokens, for trainings of a second."""

import random

import numpy
import torch
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback

PAD = 0


class Rows(Dataset):
    """Rows of `width` tokens of which the first `lengths[i]` are no padding."""

    def __init__(self, lengths: list[int], width: int):
        generator = torch.Generator().manual_seed(1)
        self.tokens = torch.randint(1, 64, (len(lengths), width), generator=generator)
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        mask = (torch.arange(self.tokens.shape[1]) < self.lengths[index]).long()
        ids = torch.where(mask.bool(), self.tokens[index], PAD)
        return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def tiny_model() -> LlamaForCausalLM:
    """Two layers, with dropout so that training draws random numbers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        attention_dropout=0.2,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


class Clock(TrainerCallback):
    """A clock that only these events move: 2 s for each optimizer step, 100 s for each evaluation and each save."""

    now = 1000.0

    def on_pre_optimizer_step(self, *args, **kwargs):
        self.now += 2

    def on_prediction_step(self, *args, **kwargs):
        self.now += 100

    def on_save(self, *args, **kwargs):
        self.now += 100


class NumberDrawer(TrainerCallback):
    """What a collator or a data set may do: draw from every generator at each step."""

    def __init__(self):
        self.drawn = []

    def on_step_begin(self, *args, **kwargs):
        self.drawn.append((random.random(), numpy.random.rand(), torch.rand(1).item()))
