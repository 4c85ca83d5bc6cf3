"""Switch a model to evaluation mode for a while, and back whatever happens."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Let `model` be in evaluation mode within the block; then in the mode it was in, after errors too."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
