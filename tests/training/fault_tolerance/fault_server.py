"""What the server that `faults` forks from does once, for all: imports, and transformers' first save."""

import contextlib
import tempfile

import torch._dynamo  # by the first optimizer  # noqa: F401

import hf_llm.monitoring.attach
import hf_llm.posttraining.ppo.trainer
import hf_llm.training.batch_rampup
import hf_llm.training.pretraining_trainer  # noqa: F401
from tests.training.fault_tolerance.faults import tiny_model

with contextlib.suppress(ImportError):  # accelerate imports it where it is installed
    import deepspeed  # noqa: F401

with tempfile.TemporaryDirectory() as folder:
    tiny_model().save_pretrained(folder)
