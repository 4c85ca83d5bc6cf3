"""What one device holds when several train together: the engines side by side, by arithmetic over a footprint.

The working memory of a pass is measured (`hf_llm.planning.memory`); what the engines split and the buffers they add
follow from their documentation and source, named at each. None of this has been measured on several GPUs.
"""

from dataclasses import dataclass

from hf_llm.planning.memory import COPIES, GRADIENTS, OPTIMIZER, TEMPORARY, TRAINING, UPDATE, WEIGHTS, Footprint

# Of ds_configs/*.json: elements of a bucket of gradients, of which `overlap_comm` takes two, and of the weights that
# ZeRO-3 leaves gathered (its defaults, https://deepspeed.readthedocs.io/en/latest/zero3.html).
BUCKET, MOST_GATHERED = 200_000_000, 1_000_000_000
BUFFERS = "communication"


@dataclass(frozen=True)
class Sizes:
    """What the engines split: parameters trained and frozen, and those of the largest layer."""

    trained: int
    frozen: int
    layer: int
    outside_layers: int


def engines(whole: Footprint, half: Footprint, sizes: Sizes, devices: int, bf16: bool) -> dict[str, Footprint]:
    """Engine -> what one of `devices` holds of a training of the footprint `whole`.

    `half` is that of the model in the type it computes in, with no copies of its weights: DeepSpeed and FSDP2 hold or
    gather them so. Where `bf16` is false both are the same.
    """
    width = 2 if bf16 else 4
    everything = sizes.trained + sizes.frozen
    found = {"one device" if devices == 1 else "DDP": _ddp(whole, devices)}
    if devices == 1:
        return found
    states = _per_parameter(whole.phases[UPDATE].get(OPTIMIZER, 0), sizes) * sizes.trained
    # DeepSpeed trains a float32 copy of the weights that it hands out in `width` bytes, and turns the gradients of its
    # part into float32 for the step (runtime/zero/stage_1_and_2.py: single_partition_of_fp32_groups).
    master, step = 4 * sizes.trained / devices, 4 * sizes.trained / devices
    buckets = 2 * width * min(BUCKET, sizes.trained)
    weights, gradients = width * everything, width * sizes.trained
    sharded = states / devices + master
    found["ZeRO-1"] = _split(half, weights, gradients, sharded, buckets, step)
    found["ZeRO-2"] = _split(half, weights, gradients / devices, sharded, buckets, step)
    found["ZeRO-2, offload"] = _split(half, weights, 0, 0, buckets, 0)
    gathered = width * min(everything, MOST_GATHERED) + buckets
    found["ZeRO-3"] = _split(half, weights / devices, gradients / devices, sharded, gathered, step)
    found["ZeRO-3, offload"] = _split(half, 0, 0, 0, gathered, 0)  # its parts of the weights lie there too
    # FSDP2 keeps float32 parts and gathers the layer at work and the next one, and what is in no layer throughout.
    gathered = width * (2 * sizes.layer + sizes.outside_layers) + width * sizes.layer
    found["FSDP2"] = _split(half, 4 * everything / devices, 4 * sizes.trained / devices, states / devices, gathered, 0)
    return found


def _ddp(whole: Footprint, devices: int) -> Footprint:
    """Each holds all, and the buckets through which gradients are summed: a second copy, as neither accelerate nor
    Trainer turns `gradient_as_bucket_view` on."""
    if devices == 1:
        return whole
    copy = whole.phases[UPDATE].get(GRADIENTS, 0)
    return Footprint({phase: {**parts, BUFFERS: copy} for phase, parts in whole.phases.items()})


def _split(
    half: Footprint, weights: float, gradients: float, optimizer: float, buffers: float, step: float
) -> Footprint:
    kept = {WEIGHTS: int(weights), GRADIENTS: int(gradients), OPTIMIZER: int(optimizer), BUFFERS: int(buffers)}
    working = {
        part: size
        for part, size in half.phases[TRAINING].items()
        if part not in (WEIGHTS, COPIES, GRADIENTS, OPTIMIZER)
    }
    return Footprint({TRAINING: {**kept, **working}, UPDATE: {**kept, TEMPORARY: int(step)}})


def _per_parameter(size: int, sizes: Sizes) -> float:
    return size / max(1, sizes.trained)
