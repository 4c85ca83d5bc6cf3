"""What one process finds out, all processes act on."""

from collections.abc import Callable
from typing import TypeVar

import torch
from accelerate.utils import broadcast_object_list

from hf_llm.errors import UserError
from hf_llm.lifecycle import is_main_process

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
