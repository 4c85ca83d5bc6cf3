"""Build your own LLM on the Hugging Face stack: one recipe, from raw text to a chat model."""

import os
import sys

from hf_llm.core.console import drop_library_notices

__version__ = "0.2.0"

# The libraries' progress bars appear only for work that takes longer than this, and rarely in a log file. tqdm reads
# these variables when it is imported (https://tqdm.github.io/docs/tqdm/).
os.environ.setdefault("TQDM_DELAY", "4")
if not (sys.stderr and sys.stderr.isatty()):
    os.environ.setdefault("TQDM_MININTERVAL", "60")

# Threads that wait for each other count in a loop before they sleep, by default to 300,000. Where other programs use
# the cores too, that makes a step several times slower; a count of 6,000 is as fast where none does (docs/lab.md).
# GNU's OpenMP reads this when torch is imported.
if not any(name in os.environ for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")):
    os.environ["GOMP_SPINCOUNT"] = "6000"

# Before the libraries are imported, which is when they print them.
drop_library_notices()
