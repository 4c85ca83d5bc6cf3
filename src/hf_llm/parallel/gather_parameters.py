"""Whole weights in every process for a while, of a model that FSDP2 or ZeRO-3 has spread over them.

Both gather weights again in every forward pass, and wait until all processes take part in it. A process that samples
makes as many passes as its own completions are long, which differ between processes.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from transformers import Trainer

from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import read_layout


def prepare_sharding(trainer: Trainer) -> None:
    """Prepare a trainer that samples, before it has wrapped its model: have FSDP2 leave alone what modules return.

    Raises UserError where weights are spread in a way that cannot be undone for a while.
    """
    layout = read_layout()
    if layout.data < layout.processes:
        raise UserError("processes that share their batches cannot sample; launch without context or sequence sizes")
    if any(hasattr(parameter, "ds_id") for parameter in trainer.model.parameters()):
        raise UserError("ZeRO-3 spread the model as it was loaded, and its reference with it; load it before PPOConfig")
    if not trainer.is_fsdp_enabled:
        return

    plugin = trainer.accelerator.state.fsdp_plugin
    if plugin.cpu_ram_efficient_loading:
        raise UserError(
            "fsdp_cpu_ram_efficient_loading: true loads weights in the first process alone, and reference and reward "
            "model would be empty in the others; set it to false"
        )
    policy = plugin.mixed_precision_policy
    if policy is not None:  # by default log-probabilities and values are rounded to half precision, as all outputs
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def mark_fsdp_root(model: nn.Module, nothing: str) -> None:
    """Let FSDP2 know that `model` is the root of what it holds; a no-op without FSDP2.

    FSDP2 takes the first module that is called for the root. `nothing` is the name of a method of the model that takes
    no arguments and does nothing: calling it counts as a forward pass.
    """
    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, nothing)
        getattr(model, nothing)()


def gather_weights(trainer: Trainer, part: nn.Module) -> AbstractContextManager[None]:
    """Within, each process may call `part` of the trainer's model on its own, as often as it likes.

    All processes enter together, and gather the weights: those of `part` under FSDP2, of the whole model under ZeRO-3.
    No backward pass may be under way.
    """
    if trainer.accelerator.is_fsdp2:
        plugin = trainer.accelerator.state.fsdp_plugin
        return _gather_under_fsdp2(trainer.model, part, plugin.reshard_after_forward)
    return _gather_under_zero3(trainer.model_wrapped) if is_zero3(trainer) else nullcontext()


def is_zero3(trainer: Trainer) -> bool:
    """Return whether DeepSpeed spreads the parameters themselves."""
    return trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3


@contextmanager
def _gather_under_fsdp2(root: nn.Module, part: nn.Module, reshard: bool) -> Iterator[None]:
    # The root holds the parameters that are in none of its shards.
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


@contextmanager
def _gather_under_zero3(engine: nn.Module) -> Iterator[None]:
    import deepspeed
    from trl.models.utils import add_hooks, remove_hooks

    with deepspeed.zero.GatheredParameters(list(engine.parameters())):
        remove_hooks(engine)  # which would fetch each layer's weights, and release them
        try:
            yield
        finally:
            add_hooks(engine)
