"""Gather the weights of a model that FSDP2 or ZeRO-3 has sharded, so that each process can sample on its own.

FSDP2 and ZeRO-3 gather weights in every forward pass, in which all processes must take part. But when sampling, a
process makes as many passes as its longest completion has tokens, which differs between processes. So the weights are
gathered once, and kept while all processes sample.
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
    """Prepare a trainer that samples, before it wraps its model: stop FSDP2 from rounding the outputs of modules.

    Raises UserError where weights are sharded in a way in which they cannot be gathered for sampling.
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
    if policy is not None:
        # By default all outputs are rounded to half precision, log-probabilities and values among them.
        plugin.mixed_precision_policy = replace(policy, output_dtype=None)


def mark_fsdp_root(model: nn.Module, nothing: str) -> None:
    """Make `model` the root of FSDP2's modules; without FSDP2 do nothing.

    FSDP2 takes the module that is called first for the root. So this calls the model's method named `nothing`, which
    takes no arguments and does nothing, as if it were a forward pass.
    """
    if isinstance(model, FSDPModule):
        register_fsdp_forward_method(model, nothing)
        getattr(model, nothing)()


def gather_weights(trainer: Trainer, part: nn.Module) -> AbstractContextManager[None]:
    """Return a context within which each process may call `part` of the trainer's model on its own, however often.

    All processes have to enter it together, outside of a backward pass. Gathered are the weights of `part` under FSDP2,
    and those of the whole model under ZeRO-3.
    """
    if trainer.accelerator.is_fsdp2:
        plugin = trainer.accelerator.state.fsdp_plugin
        return _gather_under_fsdp2(trainer.model, part, plugin.reshard_after_forward)
    if is_zero3(trainer):
        return _gather_under_zero3(trainer.model_wrapped)
    return nullcontext()


def is_zero3(trainer: Trainer) -> bool:
    """Whether DeepSpeed shards the parameters themselves."""
    return trainer.is_deepspeed_enabled and trainer.accelerator.state.deepspeed_plugin.zero_stage == 3


@contextmanager
def _gather_under_fsdp2(root: nn.Module, part: nn.Module, reshard: bool) -> Iterator[None]:
    # The root is gathered too: it holds the parameters that belong to no other FSDP module.
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
        remove_hooks(engine)  # the hooks would gather each layer's weights in its forward pass, and then release them
        try:
            yield
        finally:
            add_hooks(engine)
