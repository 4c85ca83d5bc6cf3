"""What one process finds out, all processes act on."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list

from hf_llm.core.console import is_main_process
from hf_llm.core.errors import UserError

T = TypeVar("T")


def on_main(find_out: Callable[[], T]) -> T:
    """Call `find_out` in the first process alone; its result is returned, its UserError raised, in every process."""
    found: list = [None, None]
    if is_main_process():
        try:
            found[0] = find_out()
        except UserError as error:
            found[1] = error
    if torch.distributed.is_initialized():
        broadcast_object_list(found)
    if found[1] is not None:
        raise found[1]
    return found[0]


def meet(seconds: float) -> None:
    """Join the processes of a launch on CPUs; to wait for one of them ends with an error after `seconds`.

    Trainer would join them itself, but forgets its `ddp_timeout` where `use_cpu` is set.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=seconds))
