"""Muon for the matrices inside layers, AdamW for all else, as one optimizer that Trainer can hold.

Muon (https://kellerjordan.github.io/posts/muon) turns the momentum of a matrix into the orthogonal matrix nearest to
it before it is added. Updates are scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982), so one learning
rate and one weight decay serve both. On whole matrices its steps are those of `torch.optim.Muon`, to rounding; beyond
that it knows matrices of which this process holds a part (FSDP2, tensor parallelism, ZeRO-1 and 2), and the stacked
ones of experts.
"""

from collections.abc import Callable
from math import prod, sqrt
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from hf_llm.core.errors import UserError
from hf_llm.hardware.runtime import has_bf16
from hf_llm.parallel.layout import uses

MUON = "muon"  # the value of `training.optim`
COEFFICIENTS, ITERATIONS, EPSILON = (3.4445, -4.7750, 2.0315), 5, 1e-7  # Keller Jordan's, and torch's


def check_muon(where: str) -> None:
    """Raise UserError where Muon cannot train the stage whose recipe section is `where`, launched like this."""
    if where != "pretrain":
        raise UserError(f"{where}.training.optim: muon is for pretraining; leave it out, and AdamW tunes the model")
    if not uses("DEEPSPEED"):
        return
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    settings = plugin.deepspeed_config["zero_optimization"]
    device = settings.get("offload_optimizer", {}).get("device", "none")
    if plugin.zero_stage == 3 or device != "none":
        raise UserError(
            f"{where}.training.optim: muon needs matrices that it can make whole on the device, which "
            f"{'ZeRO-3' if plugin.zero_stage == 3 else 'offloading'} does not let it; launch with zero2 or fsdp2 of "
            "accelerate_configs/"
        )
    for key in ("round_robin_gradients", "parameter_alignment"):
        if settings.get(key):
            raise UserError(
                f"{where}.training.optim: muon finds its matrices where DeepSpeed lays them one after another; take "
                f"{key} out of the DeepSpeed JSON"
            )


def matrices_of(model: PreTrainedModel) -> set[nn.Parameter]:
    """The parameters that Muon is for: all of two dimensions or more that are neither embedding nor head."""
    ends = [model.get_output_embeddings(), *(part for part in model.modules() if isinstance(part, nn.Embedding))]
    outside = {parameter for part in ends if part is not None for parameter in part.parameters()}
    return {parameter for parameter in model.parameters() if parameter.ndim >= 2} - outside


class Muon(Optimizer):
    """The optimizer of Trainer's groups of parameters: Muon for those in `matrices`, fused AdamW for the others.

    A group knows by `use_muon` whose it is. The momentum of a matrix lies where the matrix does, whole or in parts;
    what is gathered for a step is the update, one matrix at a time (under ZeRO one group at a time).
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        matrices: set[nn.Parameter],
        betas: tuple[float, float],
        eps: float,
        momentum: float = 0.95,
    ):
        mine, others = [], []
        for group in groups:
            parts = {True: [], False: []}
            for parameter in group["params"]:
                parts[parameter in matrices].append(parameter)
            shapes = [tuple(parameter.shape) for parameter in parts[True]]
            mine.append({**group, "params": parts[True], "momentum": momentum, "shapes": shapes, "use_muon": True})
            others.append({**group, "params": parts[False], "use_muon": False})
        kept = [group for group in mine if group["params"]]
        self._adamw = AdamW([group for group in others if group["params"]], lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*kept, *self._adamw.param_groups], {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """One step of both; parameters without gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        # Loading a state, and DeepSpeed, put others in the place of both.
        self._adamw.param_groups = [group for group in self.param_groups if not group["use_muon"]]
        self._adamw.state = self.state
        self._adamw.step()
        for group in self.param_groups:
            for parameter in group["params"] if group["use_muon"] else ():
                if parameter.grad is not None:
                    self._step_matrix(parameter, group)
        return loss

    def _step_matrix(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        update = gradient.lerp(momentum, group["momentum"])  # Nesterov's
        if isinstance(update, DTensor):
            update = of_shards(update)
        elif update.ndim == 1:
            update = of_partition(update, group["shapes"])
        else:
            update = orthogonal(update)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"])


def orthogonal(matrices: torch.Tensor) -> torch.Tensor:
    """The orthogonal matrix nearest to each of `matrices` (... x rows x columns), about, times 0.2 sqrt(max(rows,
    columns)), which gives its elements the root mean square of AdamW's updates. In float32, computed in `working_type`.

    By Newton-Schulz iteration, which leaves singular values of 0.7 to 1.2: they need not come nearer to 1.
    """
    rows, columns = matrices.shape[-2:]
    x = matrices.to(working_type(matrices.device)).reshape(-1, rows, columns)
    x = x.mT if rows > columns else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.mT if rows > columns else x
    return x.reshape(matrices.shape).float() * (0.2 * sqrt(max(rows, columns)))


def working_type(device: torch.device) -> torch.dtype:
    """bfloat16; on a CPU without units for it, which takes up to thirty times as long over such products, float32."""
    return torch.float32 if device.type == "cpu" and not has_bf16("cpu") else torch.bfloat16


def of_shards(update: DTensor) -> DTensor:
    """`orthogonal` of a matrix that is spread over processes, each of which makes it whole and keeps its part."""
    mesh = update.device_mesh
    whole = orthogonal(update.to(working_type(update.device)).full_tensor())
    return DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False).redistribute(
        mesh, update.placements
    )


def of_partition(update: torch.Tensor, shapes: list[tuple[int, ...]]) -> torch.Tensor:
    """`orthogonal` of the matrices of which `update` is this process's part: ZeRO lays the elements of all matrices of
    a group in a row, one after another, and cuts it into equal parts. Each process makes the matrices it has part in.
    """
    size, rank, dtype = update.numel(), dist.get_rank(), working_type(update.device)
    row = torch.empty(size * dist.get_world_size(), dtype=dtype, device=update.device)
    dist.all_gather(list(row.split(size)), update.to(dtype))
    result, start = torch.zeros_like(update), rank * size
    end = offset = 0
    for shape in shapes:
        offset, end = end, end + prod(shape)
        first, last = max(offset, start), min(end, start + size)
        if first < last:
            whole = orthogonal(row[offset:end].view(shape)).flatten()
            result[first - start : last - start] = whole[first - offset : last - offset]
    return result
