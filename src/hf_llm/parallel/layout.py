"""Read from the environment how a launch spreads a model and its batches over processes, and check it.

`accelerate launch` sets the variables from the `parallelism_config` of an accelerate config. It has no size for
pipeline stages; that is the environment variable `PARALLELISM_CONFIG_PP_SIZE`, named as accelerate names the others.
docs/parallelism.md says when to use which.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from accelerate.parallelism_config import ParallelismConfig
from accelerate.utils import DistributedType
from torch.distributed.fsdp import FSDPModule
from transformers import TrainingArguments, default_data_collator

from hf_llm.core.errors import UserError

PIPELINE_SIZE_VARIABLE = "PARALLELISM_CONFIG_PP_SIZE"


@dataclass(frozen=True)
class Layout:
    """Processes along each dimension. Those of one tensor, context, sequence or pipeline group share their batches."""

    processes: int
    """All processes of the launch."""
    replicate: int = 1
    """Copies of a sharded model."""
    shard: int = 1
    """Processes that each hold a part of every weight."""
    tensor: int = 1
    """Processes that share the matrices of a layer."""
    context: int = 1
    """Processes that share a window, by ring attention."""
    sequence: int = 1
    """Processes that share a window, by heads in attention (Ulysses)."""
    pipeline: int = 1
    """Processes that share the layers."""

    @property
    def data(self) -> int:
        """The number of processes, or groups of them, that see different batches."""
        return self.processes // (self.tensor * self.context * self.sequence * self.pipeline)

    @property
    def splits_layers(self) -> bool:
        """Whether a single layer, or the list of layers, is spread over processes."""
        return self.tensor * self.pipeline > 1


def read_layout() -> Layout:
    """Read the layout of this launch. Raises UserError where its sizes do not multiply to the number of processes."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    pipeline = int(os.environ.get(PIPELINE_SIZE_VARIABLE, "1"))
    if not _is_true("ACCELERATE_USE_PARALLELISM_CONFIG") and pipeline == 1:
        return Layout(processes)
    try:
        sizes = ParallelismConfig()
    except ValueError as error:
        raise UserError(f"parallelism_config: {error}") from None

    needed = sizes.total_size * pipeline
    if needed != processes:
        product = f"{sizes.total_size} x {pipeline} pipeline stages" if pipeline > 1 else f"{sizes.total_size}"
        raise UserError(
            f"{processes} processes were launched, and the sizes in parallelism_config make {product}; "
            f"set --num_processes={needed}, or a size "
            f"(--parallelism_config_dp_shard_size=N; {PIPELINE_SIZE_VARIABLE}=N in the environment for pipeline stages)"
        )
    return Layout(
        processes=processes,
        replicate=sizes.dp_replicate_size,
        shard=sizes.dp_shard_size,
        tensor=sizes.tp_size,
        context=sizes.cp_size,
        sequence=sizes.sp_size,
        pipeline=pipeline,
    )


def check_layout(layout: Layout, where: str, device: str) -> None:
    """Raise UserError where the stage whose recipe section is `where` cannot train in this layout on a `device`."""
    if layout.context > 1 and device == "cpu":
        raise UserError(
            "context parallelism passes keys and values around inside PyTorch's attention kernels for GPUs; there is "
            "none for a CPU. Launch with accelerate_configs/sequence_parallel.yaml, or fsdp2.yaml"
        )
    if is_engine_enabled("FSDP") and os.environ.get("FSDP_VERSION", "1") != "2":
        raise UserError(
            "fsdp_version: 1 hides the shapes of weights from the optimizer, which then decays none and knows no "
            "matrix for Muon; set it to 2, as accelerate_configs/fsdp2.yaml does (--fsdp_version=2)"
        )

    has_sharding_engine = is_engine_enabled("FSDP") or is_engine_enabled("DEEPSPEED")
    if layout.splits_layers:
        _check_split_layers(layout, where, has_sharding_engine)
    elif layout.shard > 1 and not has_sharding_engine:
        raise UserError(
            "parallelism_config_dp_shard_size alone shards nothing; launch with fsdp2.yaml or hsdp.yaml of "
            f"accelerate_configs/, or also set {PIPELINE_SIZE_VARIABLE} or --parallelism_config_tp_size"
        )


def _check_split_layers(layout: Layout, where: str, has_sharding_engine: bool) -> None:
    if where != "pretrain":
        raise UserError(
            f"tensor and pipeline parallelism are for pretraining; launch {where} with zero2, zero3 or fsdp2 of "
            "accelerate_configs/"
        )
    if has_sharding_engine:
        raise UserError(
            "tensor and pipeline parallelism shard by themselves (parallelism_config_dp_shard_size); launch them with "
            "distributed_type: MULTI_GPU, as accelerate_configs/tensor_parallel.yaml does"
        )
    if layout.context * layout.sequence > 1:
        raise UserError(
            "tensor or pipeline parallelism together with context or sequence parallelism is not implemented"
        )
    if layout.replicate > 1 and layout.shard == 1:
        raise UserError(
            "parallelism_config_dp_replicate_size without dp_shard_size: with tensor or pipeline parallelism, data "
            f"parallelism has to shard; set parallelism_config_dp_shard_size={layout.replicate} instead"
        )


def enable_cpu_sharding(arguments: TrainingArguments) -> None:
    """Let accelerate shard over processes on CPUs, where the launch asks for it.

    accelerate uses FSDP and device meshes on accelerators only, and silently falls back to DDP on CPUs, although
    PyTorch's `fully_shard` and `DTensor` work there too, over gloo.
    """
    state = arguments.distributed_state
    has_sizes = _is_true("ACCELERATE_USE_PARALLELISM_CONFIG") or PIPELINE_SIZE_VARIABLE in os.environ
    if state.distributed_type == DistributedType.MULTI_CPU and (is_engine_enabled("FSDP") or has_sizes):
        state.distributed_type = DistributedType.MULTI_GPU
    if read_layout().sequence > 1 and arguments.device.type == "cpu":
        import deepspeed  # accelerate tells it of the processes only where they have GPUs

        deepspeed.init_distributed("gloo", auto_mpi_discovery=False, verbose=False)


def select_collator(layout: Layout) -> Callable[[list[dict[str, torch.Tensor]]], dict[str, torch.Tensor]]:
    """Return the function that collates windows to a batch.

    Under sequence parallelism a batch has each token's position, which a process cannot count from its part of a
    window.
    """
    return collate_with_positions if layout.sequence > 1 else default_data_collator


def collate_with_positions(windows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Stack windows, and add the position of each token in its window, B T."""
    batch = default_data_collator(windows)
    rows, length = batch["input_ids"].shape
    return {**batch, "position_ids": torch.arange(length).repeat(rows, 1)}  # B T


def restore_class_name(model: torch.nn.Module) -> None:
    """Give an FSDP model's class the name and module it had before.

    `fully_shard` gives the model a new class, defined in torch's files. `save_pretrained` would write that class's name
    into `auto_map`, and copy torch's files to the model folder instead of the model's own.
    """
    if not isinstance(model, FSDPModule):
        return
    fsdp_class = type(model)
    own_class = next(base for base in fsdp_class.__mro__[1:] if not issubclass(base, FSDPModule))
    fsdp_class.__name__ = own_class.__name__
    fsdp_class.__qualname__ = own_class.__qualname__
    fsdp_class.__module__ = own_class.__module__


def is_engine_enabled(engine: str) -> bool:
    """Whether this launch uses the `engine`, which is DEEPSPEED or FSDP."""
    return _is_true(f"ACCELERATE_USE_{engine}")


def _is_true(variable: str) -> bool:
    return os.environ.get(variable, "false").lower() == "true"
