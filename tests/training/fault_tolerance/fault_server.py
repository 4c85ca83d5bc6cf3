"""What the server that `faults` forks from does once, for all: imports, and transformers' first save."""

import contextlib
import tempfile

from tests.training.fault_tolerance.faults import tiny_model

with contextlib.suppress(ImportError):  # accelerate imports it where it is installed
    import deepspeed  # noqa: F401

with tempfile.TemporaryDirectory() as folder:
    tiny_model().save_pretrained(folder)
