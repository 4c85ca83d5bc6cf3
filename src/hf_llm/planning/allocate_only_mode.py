"""Tensors that are really allocated and never written to: what a step makes of a process's heap, at no cost in memory.

A page of memory costs something from the first write on. Here each operation's results are allocated, by the same
allocator, in the same order and with autograd's own bookkeeping between them, and their values are left undone.
"""

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Untouched(TorchDispatchMode):
    """Within it, every operation on CPU tensors allocates its results and computes nothing."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        returns = operation._schema.returns
        if not returns or any(result.alias_info for result in returns):
            # A view computes nothing anyway; what writes in place gives back what it got.
            writes = not returns or any(result.alias_info and result.alias_info.is_write for result in returns)
            return _written(operation, args, kwargs) if writes else operation(*args, **kwargs)
        if operation is torch.ops.aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else 1
        if any(argument.name == "device" for argument in operation._schema.arguments):
            kwargs = {**kwargs, "device": "meta"}
        args, kwargs = tree_map_only(torch.Tensor, _shape, (args, kwargs))
        return tree_map_only(torch.Tensor, _allocated, operation(*args, **kwargs))


def _written(operation: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """What an operation in place returns: those of its arguments that it writes to."""
    named = dict(zip((argument.name for argument in operation._schema.arguments), args, strict=False)) | kwargs
    written = [
        named[argument.name]
        for argument in operation._schema.arguments
        if argument.alias_info and argument.alias_info.is_write and argument.name in named
    ]
    count = len(operation._schema.returns)
    return None if not count else written[0] if count == 1 else tuple(written[:count])


def _shape(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _allocated(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
