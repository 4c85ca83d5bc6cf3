"""Estimate from the footprint of one device what each of several devices holds under DDP, ZeRO and FSDP2.

The working memory of a forward and backward pass is traced (`hf_llm.planning.memory`). How the engines split weights,
gradients and optimizer states, and the buffers they add, is computed from their documentation and source, named at
each. None of this has been measured on several GPUs.
"""

from dataclasses import dataclass

from hf_llm.planning.memory import COPIES, GRADIENTS, OPTIMIZER, TEMPORARY, TRAINING, UPDATE, WEIGHTS, Footprint

# The values of ds_configs/*.json (DeepSpeed's defaults, https://deepspeed.readthedocs.io/en/latest/zero3.html).
BUCKET_ELEMENTS = 200_000_000  # of a bucket of gradients; with `overlap_comm` there are two
MAX_GATHERED_ELEMENTS = 1_000_000_000  # weights that ZeRO-3 keeps gathered

BUFFERS = "communication"


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a model, as the engines split them."""

    trained: int
    frozen: int
    per_layer: int
    outside_layers: int


def estimate_engines(
    whole: Footprint, half: Footprint, counts: ParameterCounts, devices: int, bf16: bool
) -> dict[str, Footprint]:
    """Estimate what one of `devices` holds under each engine, by the engine's name.

    `whole` is the footprint of the training on one device, with float32 weights and their low-precision copies. `half`
    is that of the model with weights in the low-precision type, as DeepSpeed and FSDP2 hold or gather them. Where
    `bf16` is false both are the same.
    """
    if devices == 1:
        return {"one device": whole}

    bytes_per_element = 2 if bf16 else 4
    all_parameters = counts.trained + counts.frozen
    optimizer_bytes = whole.phases[UPDATE].get(OPTIMIZER, 0)
    weights = bytes_per_element * all_parameters
    gradients = bytes_per_element * counts.trained
    engines = {"DDP": _estimate_ddp(whole)}

    # DeepSpeed updates a float32 copy of its part of the weights, and for that converts the gradients of its part to
    # float32 (runtime/zero/stage_1_and_2.py: single_partition_of_fp32_groups).
    master_weights = 4 * counts.trained / devices
    float32_gradients = 4 * counts.trained / devices
    sharded_optimizer = optimizer_bytes / devices + master_weights
    buckets = 2 * bytes_per_element * min(BUCKET_ELEMENTS, counts.trained)
    engines["ZeRO-1"] = _replace_kept_parts(
        half, weights, gradients, sharded_optimizer, buckets, temporary=float32_gradients
    )
    engines["ZeRO-2"] = _replace_kept_parts(
        half, weights, gradients / devices, sharded_optimizer, buckets, temporary=float32_gradients
    )
    engines["ZeRO-2, offload"] = _replace_kept_parts(half, weights, 0, 0, buckets, temporary=0)

    gathered = bytes_per_element * min(all_parameters, MAX_GATHERED_ELEMENTS)
    engines["ZeRO-3"] = _replace_kept_parts(
        half, weights / devices, gradients / devices, sharded_optimizer, gathered + buckets, temporary=float32_gradients
    )
    # Offloaded, the parts of the weights lie in main memory too.
    engines["ZeRO-3, offload"] = _replace_kept_parts(half, 0, 0, 0, gathered + buckets, temporary=0)

    # FSDP2 keeps float32 parts. It gathers the present layer and the next one, and during the whole pass the modules
    # outside of layers; the gradients of one layer are whole too.
    gathered = bytes_per_element * (2 * counts.per_layer + counts.outside_layers)
    layer_gradients = bytes_per_element * counts.per_layer
    engines["FSDP2"] = _replace_kept_parts(
        half,
        4 * all_parameters / devices,
        4 * counts.trained / devices,
        optimizer_bytes / devices,
        gathered + layer_gradients,
        temporary=0,
    )
    return engines


def _estimate_ddp(whole: Footprint) -> Footprint:
    """Add the buckets through which DDP sums gradients to the footprint of one device.

    They are a second copy of the gradients: neither accelerate nor Trainer turns `gradient_as_bucket_view` on.
    """
    buckets = whole.phases[UPDATE].get(GRADIENTS, 0)
    return Footprint({phase: {**parts, BUFFERS: buckets} for phase, parts in whole.phases.items()})


def _replace_kept_parts(
    half: Footprint, weights: float, gradients: float, optimizer: float, buffers: float, temporary: float
) -> Footprint:
    """Replace the parts of `half` that a device keeps between steps by the given bytes, and keep the other parts.

    `temporary` are the bytes that are allocated and released within the optimizer step.
    """
    kept = {WEIGHTS: int(weights), GRADIENTS: int(gradients), OPTIMIZER: int(optimizer), BUFFERS: int(buffers)}

    working = {}
    for part, size in half.phases[TRAINING].items():
        if part not in (WEIGHTS, COPIES, GRADIENTS, OPTIMIZER):
            working[part] = size

    return Footprint({TRAINING: {**kept, **working}, UPDATE: {**kept, TEMPORARY: int(temporary)}})
