"""Whole weights in every process for a while, of a model that FSDP2 has spread over them."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method


def make_root(model: nn.Module, nothing: str) -> None:
    """Let FSDP2 know that `model` is the root of what it holds; a no-op without FSDP2.

    It takes the first module that is called for the root. `nothing` is the name of a method of the model that takes
    nothing and does nothing: calling it is a pass as good as any.
    """
    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, nothing)
        getattr(model, nothing)()


@contextmanager
def whole_weights(root: nn.Module, part: nn.Module, reshard: bool) -> Iterator[None]:
    """Let each process call `part` of `root` on its own, as often as it likes; a no-op without FSDP2.

    FSDP2 gathers weights anew in every pass, and waits for all processes to take part. Here those of `part`, and those
    that `root` keeps for itself, are gathered once, by all processes together, and given back at the end. `reshard` is
    what the layers were sharded with (`fsdp_reshard_after_forward`); gradients are not to be under way.
    """
    shards = [module for module in (root, *part.modules()) if isinstance(module, FSDPModule)]
    for shard in shards:
        shard.set_reshard_after_forward(False, recurse=False)
        shard.unshard()
    try:
        yield
    finally:
        for shard in shards:
            shard.set_reshard_after_forward(reshard and shard is not root, recurse=False)
            shard.reshard()
