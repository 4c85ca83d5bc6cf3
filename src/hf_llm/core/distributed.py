"""Let one process of a launch do something for all of them, and join the processes of a launch on CPUs."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_llm.core.console import is_main_process
from hf_llm.core.errors import UserError

T = TypeVar("T")


def run_on_main(function: Callable[[], T]) -> T:
    """Call `function` in the first process only. In every process, return its result or raise its UserError."""
    outcome: list[Any] = [None, None]  # the result and the UserError
    if is_main_process():
        try:
            outcome[0] = function()
        except UserError as error:
            outcome[1] = error

    if torch.distributed.is_initialized():
        broadcast_object_list(outcome)

    result, user_error = outcome
    if user_error is not None:
        raise user_error
    return result


def init_cpu_process_group(timeout_seconds: float) -> None:
    """Join the processes of a launch on CPUs over gloo; a wait for one of them fails after `timeout_seconds`.

    Trainer would join them itself, but ignores its `ddp_timeout` where `use_cpu` is set.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("gloo", timeout=timedelta(seconds=timeout_seconds))


def join_processes(timeout_seconds: float = 86_400) -> tuple[int, int]:
    """Join the processes of this launch, over gloo on CPUs; return the number of this one and how many there are.

    A wait for one of them fails after `timeout_seconds`.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return 0, 1
    uses_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    if uses_cpu or not torch.accelerator.is_available():
        init_cpu_process_group(timeout_seconds)
    else:
        PartialState(timeout=timedelta(seconds=timeout_seconds))
    return torch.distributed.get_rank(), torch.distributed.get_world_size()
