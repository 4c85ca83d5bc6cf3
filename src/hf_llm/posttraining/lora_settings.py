"""Check the values of a `lora` section by themselves: no model, and not PEFT either, is needed for that."""

from typing import Any

# Starts of an adapter that leave the weights below it, and what the model says, as they are.
NEUTRAL_STARTS = (True, "gaussian", "orthogonal", "mica")

# Starts that move part of the weights into the adapter: with the adapter switched off it is another model.
MOVING_STARTS = ("pissa", "olora")

# Starts that need a pass over data or over quantised weights first. PEFT trains some of them as plain LoRA without it.
UNPREPARED_STARTS = {
    "eva": "needs a pass over the data that this stage does not make",
    "corda": "needs a pass over the data that this stage does not make",
    "lora_ga": "needs gradients of the data that this stage does not compute",
    "loftq": "quantises the model itself",
}

# Kinds of adapters that change the weights below them, or train them in part, so that the model with its adapter
# switched off is not the model that the stage starts from.
CHANGES_BASE = {
    "kasa_config": "cuts small singular values off the weights below the adapter",
    "layer_replication": "repeats layers of the model",
}

KINDS_WITHOUT_MERGE = {
    "alora_invocation_tokens": "an adapter that is active on some tokens only cannot be merged into the model",
    "arrow_config": "a router of adapters cannot be merged into the model",
    "megatron_config": "the models here are not those of Megatron",
    "layer_replication": "repeats layers, which the saved model's config does not say",
}


def check_lora_settings(lora: dict[str, Any], has_reference: bool, quantize: str | None) -> None:
    """Check the values of a `lora` section, as the stage's own section does in `__post_init__`.

    `has_reference` says whether the stage compares the model with the one it starts from, which is the model with its
    adapter switched off. Raises ValueError with the key, what is wrong and the remedy.
    """
    start = lora.get("init_lora_weights", True)
    if start in UNPREPARED_STARTS:
        raise ValueError(
            f"lora.init_lora_weights: {start} {UNPREPARED_STARTS[start]}; leave it out, or write gaussian, orthogonal "
            "or mica"
        )
    if isinstance(start, str) and start.startswith("pissa_niter_"):
        raise ValueError(
            f"lora.init_lora_weights: {start} decomposes the weights at random, so the adapter would not fit them when "
            "it is loaded again; write pissa"
        )
    if quantize and start in MOVING_STARTS:
        raise ValueError(
            f"lora.init_lora_weights: {start} changes the weights below the adapter, which `quantize: {quantize}` "
            "holds in few bits; leave one of the two out"
        )
    for key, reason in KINDS_WITHOUT_MERGE.items():
        if lora.get(key) is not None:
            raise ValueError(f"lora.{key}: {reason}; leave it out")
    if not has_reference:
        return

    if start not in NEUTRAL_STARTS:
        change = "changes the weights below the adapter" if start in MOVING_STARTS else "starts from another model"
        raise ValueError(
            f"lora.init_lora_weights: {str(start).lower()} {change}, so the reference (the model without its adapter) "
            "would not be the model that the stage starts from; leave it out, or write gaussian, orthogonal or mica"
        )
    for key, reason in CHANGES_BASE.items():
        if lora.get(key) is not None:
            raise ValueError(f"lora.{key}: {reason}, so the reference would be another model; leave it out")
    if lora.get("bias", "none") != "none":
        raise ValueError(
            f"lora.bias: {lora['bias']} trains biases of the model itself, and the reference (the model without its "
            "adapter) has them too; leave it out"
        )
