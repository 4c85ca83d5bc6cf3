"""A Trainer with what pretraining needs beyond transformers' own."""

from transformers import Trainer


class PretrainingTrainer(Trainer):
    """Trainer for a model that learns from raw text."""
