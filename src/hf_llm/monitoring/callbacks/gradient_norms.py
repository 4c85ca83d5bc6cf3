"""Log the gradient norm of each part of the model, which shows where a training becomes unstable first."""

import math
import re

import torch
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import IntervalStrategy

from hf_llm.core.console import print_main
from hf_llm.parallel.layout import read_layout

# A parameter belongs to the first part whose pattern its name matches; names are those of transformers' models. Each
# part has a line in the chart of `evaluation/metrics.py`.
PARTS = {
    "norms": r"norm|(^|\.)ln_|layer_?norm",
    "head": r"(^|\.)(lm_head|score|classifier|value_head|v_head|cls|embed_out)\.",
    "embeddings": r"embed|(^|\.)(wte|wpe|shared)\.",
    "attention": r"attn|attention|query_key_value|relative_attention_bias|([qkvo]|out)_proj",
    "mlp": r"mlp|feed_?forward|ffn|dense|experts|(^|\.)(fc\d?|gate|up_proj|down_proj)\.",
}
OTHER = "other"


class GradientNormCallback(TrainerCallback):
    """Add `grad_norm/<part>` to the training logs: 2-norms before clipping, whose squares add up to `grad_norm`'s.

    Norms are computed only in steps that will be logged, and read after the loss has been read, so that the device is
    not synchronised once more. They are correct under accumulation, DDP (all processes hold equal gradients) and FSDP2
    (each process holds a shard). There are none, and a line says so, under DeepSpeed (its engine has stepped and freed
    the gradients before a callback is called), FSDP1 (it flattens all parameters into one tensor) and pipelines (no
    process holds all parts). A head that shares the embeddings' weights counts as embeddings.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self._parameters_by_part: dict[str, list[torch.nn.Parameter]] = {}
        self._norms: torch.Tensor | None = None  # the present step's, after clipping: (parts,) on the device
        is_flattened = trainer.is_fsdp_enabled and not trainer.accelerator.is_fsdp2
        self._is_disabled = trainer.is_deepspeed_enabled or is_flattened or read_layout().pipeline > 1

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self._norms = None
        if self._is_disabled:
            print_main("no gradient norms by part of the model: under this engine no process holds all gradients")
            return
        self._parameters_by_part = group_by_part(self.trainer.model)

    def on_step_begin(self, args, state, control, **kwargs):
        self._norms = None

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        if self._is_disabled or not _will_log(args, state):
            return
        norms = [gradient_norm(parameters) for parameters in self._parameters_by_part.values()]
        self._norms = torch.stack([norm.to(args.device) for norm in norms])

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self._norms is None or "loss" not in logs or not logs.get("grad_norm"):
            return
        norms = self._norms.tolist()
        self._norms = None

        # Clipping has scaled all norms by one factor. `grad_norm` is the total before clipping, so it gives the factor.
        total = math.hypot(*norms)
        if not total or not math.isfinite(total):
            return
        scale = float(logs["grad_norm"]) / total
        values = {}
        for part, norm in zip(self._parameters_by_part, norms, strict=True):
            values[f"grad_norm/{part}"] = norm * scale
        logs.update(values)
        state.log_history[-1].update(values)


def group_by_part(model: torch.nn.Module) -> dict[str, list[torch.nn.Parameter]]:
    """Group the trained parameters of a model by part, without the parts that have none."""
    groups: dict[str, list[torch.nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(model_part(name), []).append(parameter)
    return {part: groups[part] for part in (*PARTS, OTHER) if part in groups}


def model_part(name: str) -> str:
    """Return the part of a model that a parameter belongs to by its name: one of `PARTS`, or `OTHER`."""
    for part, pattern in PARTS.items():
        if re.search(pattern, name.lower()):
            return part
    return OTHER


def gradient_norm(parameters: list[torch.nn.Parameter]) -> torch.Tensor:
    """Compute the 2-norm of the gradients of some parameters, (), on their device; 0 where none has a gradient."""
    # Gradients that are sharded over different meshes of processes cannot be stacked, so each mesh has its own norm.
    gradients_by_mesh: dict[DeviceMesh | None, list[torch.Tensor]] = {}
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
        gradients_by_mesh.setdefault(mesh, []).append(gradient)

    norms = []
    for gradients in gradients_by_mesh.values():
        norm = torch.nn.utils.get_total_norm(gradients)
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else torch.zeros(())


def _will_log(args, state) -> bool:
    """Whether the present step will be logged: the rule of DefaultFlowCallback, which decides after the step."""
    step = state.global_step + 1
    if args.logging_strategy == IntervalStrategy.STEPS and step % state.logging_steps == 0:
        return True
    if args.logging_strategy == IntervalStrategy.EPOCH:
        return step % max(1, round(state.max_steps / (args.num_train_epochs or 1))) == 0
    return step == 1 and args.logging_first_step
