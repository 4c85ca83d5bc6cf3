"""A torch mode that allocates the results of operations and never writes to them.

A page of memory costs something from the first write on. Within the mode each result is allocated by the same
allocator, in the same order and with autograd's own bookkeeping as in a real step, and its values are left undefined.
So a process's heap grows as it would in training, at no cost in memory.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class AllocateOnlyMode(TorchDispatchMode):
    """Within this mode every operation on CPU tensors allocates its results and computes nothing."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        schema = operation._schema

        # An operation in place returns the tensors that it was given to write to.
        writes_in_place = any(result.alias_info and result.alias_info.is_write for result in schema.returns)
        if writes_in_place or not schema.returns:
            return _get_written_arguments(operation, args, kwargs)

        # A view computes nothing anyway.
        is_view = any(result.alias_info for result in schema.returns)
        if is_view:
            return operation(*args, **kwargs)

        # `tensor.item()`: any number does.
        if operation is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1

        # The meta device gives the results their shapes, from which they are allocated.
        takes_device = any(argument.name == "device" for argument in schema.arguments)
        if takes_device:
            kwargs = {**kwargs, "device": "meta"}
        args, kwargs = tree_map_only(torch.Tensor, _to_meta_device, (args, kwargs))
        results = operation(*args, **kwargs)
        return tree_map_only(torch.Tensor, _allocate_on_cpu, results)


def _get_written_arguments(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Return what an operation in place returns: those of its arguments that it writes to."""
    arguments = operation._schema.arguments
    values = dict(zip((argument.name for argument in arguments), args, strict=False)) | kwargs

    written = []
    for argument in arguments:
        is_written = argument.alias_info and argument.alias_info.is_write
        if is_written and argument.name in values:
            written.append(values[argument.name])

    count = len(operation._schema.returns)
    if count == 0:
        return None
    if count == 1:
        return written[0]
    return tuple(written[:count])


def _to_meta_device(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _allocate_on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
