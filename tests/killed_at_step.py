"""Run a stage whose Trainer kills its process (SIGKILL) when so many steps are done.

python -m tests.killed_at_step 3 hf_llm.dpo tiny.yaml
"""

import importlib
import os
import signal
import sys
from typing import Any

from transformers import TrainerCallback, trainer


def kill_in(step: int) -> None:
    """Let every Trainer of this process kill it when `step` steps are done."""

    class Kill(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

    trainer.DEFAULT_CALLBACKS.append(Kill)


if __name__ == "__main__":
    step, module, *arguments = sys.argv[1:]
    kill_in(int(step))
    importlib.import_module(module).main(arguments)
