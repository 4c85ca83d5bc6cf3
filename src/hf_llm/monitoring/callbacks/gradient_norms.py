"""The gradient's norm by the part of the model it belongs to: where a training becomes unstable first."""

import math
import re
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_llm.core.console import print_main
from hf_llm.parallel.layout import launched_layout

# The first pattern that a parameter's name holds decides; names as the architectures of transformers have them.
PARTS = {
    "norms": r"norm|(^|\.)ln_|layer_?norm",
    "head": r"(^|\.)(lm_head|score|classifier|value_head|v_head|cls|embed_out)\.",
    "embeddings": r"embed|(^|\.)(wte|wpe|shared)\.",
    "attention": r"attn|attention|query_key_value|relative_attention_bias|([qkvo]|out)_proj",
    "mlp": r"mlp|feed_?forward|ffn|dense|experts|(^|\.)(fc\d?|gate|up_proj|down_proj)\.",
}


class GradientNormCallback(TrainerCallback):
    """Adds `grad_norm/<part>` to the training logs: 2-norms before clipping, whose squares add up to that of
    `grad_norm`.

    Taken only in steps that will be logged, and read only when the loss has been read: no synchronisation of its own.
    Right under accumulation, DDP (whose gradients are equal in all processes) and FSDP2 (each process holds a piece).
    DeepSpeed has stepped, and its gradients are gone, before anyone may look; FSDP1 has one nameless tensor; no process
    of a pipeline knows all parts: there is only `grad_norm` then, and a line says so. A head that shares the
    embeddings' weights counts there.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._groups: dict[str, list[torch.nn.Parameter]] = {}
        self._norms: torch.Tensor | None = None  # (parts,) on the device, after clipping, of the step under way
        nameless = trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2
        self._blind = trainer.is_deepspeed_enabled or nameless or launched_layout().pipeline > 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._norms = None
        if self._blind:
            print_main("no gradient norms by part of the model: this engine does not show a process all gradients")
            return
        self._groups = grouped(self.trainer.model)

    def on_step_begin(self, args, state, control, **kwargs):
        self._norms = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._blind or not _will_log(args, state):
            return
        norms = [norm_of(parameters) for parameters in self._groups.values()]
        self._norms = torch.stack([norm.to(args.device) for norm in norms])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._norms is None or "loss" not in logs or not logs.get("grad_norm"):
            return
        norms = self._norms.tolist()
        self._norms = None
        # Clipping has made all of them smaller by one factor, which the norm from before it gives back.
        total = math.hypot(*norms)
        if not total or not math.isfinite(total):
            return
        scale = float(logs["grad_norm"]) / total
        extra = {f"grad_norm/{name}": norm * scale for name, norm in zip(self._groups, norms, strict=True)}
        logs.update(extra)
        state.log_history[-1].update(extra)


def grouped(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """The trained parameters of a model by part, parts without any left out."""
    found: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(part_of(name), []).append(parameter)
    return {name: found[name] for name in (*PARTS, "other") if name in found}


def part_of(name: str) -> str:
    """Which part of a model a parameter belongs to, by its name: one of `PARTS`, or `other`."""
    return next((part for part, pattern in PARTS.items() if re.search(pattern, name.lower())), "other")


def norm_of(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """The 2-norm of the gradients of some parameters as a 0-dimensional tensor on their device; 0 without any."""
    meshes: dict[Any, list[torch.Tensor]] = {}  # gradients split over different processes are not stacked
    for gradient in (parameter.grad for parameter in parameters if parameter.grad is not None):
        meshes.setdefault(gradient.device_mesh if isinstance(gradient, DTensor) else None, []).append(gradient)
    norms = [torch.nn.utils.get_total_norm(gradients) for gradients in meshes.values()]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _will_log(args, state) -> bool:
    """Whether the step under way will be logged, as DefaultFlowCallback decides after it."""
    step = state.global_step + 1
    if args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0:
        return True
    if args.logging_strategy == IntervalStrategy.EPOCH:
        return step % max(1, round(state.max_steps / (args.num_train_epochs or 1))) == 0
    return step == 1 and args.logging_first_step
