"""Use a model in the middle of its training without any effect on the training."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch


@contextmanager
def undisturbed_training(model: torch.nn.Module) -> Iterator[None]:
    """Put `model` into evaluation mode, without gradients; at the end every module is in its former mode again, and
    every random number generator in its former state."""
    modes = [(module, module.training) for module in model.modules()]
    python_state = random.getstate()
    numpy_state = numpy.random.get_state()
    try:
        with torch.random.fork_rng(), torch.no_grad():
            model.eval()
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
