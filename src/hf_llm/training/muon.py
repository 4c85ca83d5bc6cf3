"""Muon for the matrices inside layers and AdamW for all other parameters, as one optimizer for Trainer.

Muon (https://kellerjordan.github.io/posts/muon) turns the momentum of a matrix into the orthogonal matrix nearest to
it before it is added. Updates are scaled to the size of AdamW's (https://arxiv.org/abs/2502.16982), so one learning
rate and one weight decay serve both. On whole matrices its steps are those of `torch.optim.Muon`, up to rounding. It
also takes matrices of which this process holds a part (FSDP2, tensor parallelism, ZeRO-1 and 2), and the stacked
matrices of experts.
"""

from collections.abc import Callable, Iterable
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
from hf_llm.parallel.layout import is_engine_enabled

MUON = "muon"  # the value of `training.optim`

# Constants of the Newton-Schulz iteration: Keller Jordan's values, which are also torch's.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
EPSILON = 1e-7

MAX_BATCH_ELEMENTS = 1 << 23  # of the matrices that are made orthogonal together

UPDATE_RMS = 0.2  # the root mean square of an update's elements, about that of AdamW's


def check_muon(where: str) -> None:
    """Raise UserError where Muon cannot train the stage whose recipe section is `where` in this launch."""
    key = f"{where}.training.optim"
    if where != "pretrain":
        raise UserError(f"{key}: muon is for pretraining; leave it out to fine-tune with AdamW")
    if not is_engine_enabled("DEEPSPEED"):
        return

    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    zero_settings = plugin.deepspeed_config["zero_optimization"]
    offload_device = zero_settings.get("offload_optimizer", {}).get("device", "none")
    if plugin.zero_stage == 3 or offload_device != "none":
        obstacle = "ZeRO-3" if plugin.zero_stage == 3 else "offloading"
        raise UserError(
            f"{key}: muon needs matrices that it can make whole on the device, which {obstacle} does not let it; "
            "launch with zero2 or fsdp2 of accelerate_configs/"
        )

    for setting in ("round_robin_gradients", "parameter_alignment"):
        if zero_settings.get(setting):
            raise UserError(
                f"{key}: muon expects DeepSpeed to lay its matrices one after another in memory; take "
                f"{setting} out of the DeepSpeed JSON"
            )


def muon_matrices(model: PreTrainedModel) -> set[nn.Parameter]:
    """Return the parameters that Muon is for: those of two or more dimensions, without embeddings and head."""
    excluded_modules = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    head = model.get_output_embeddings()
    if head is not None:
        excluded_modules.append(head)

    excluded = {parameter for module in excluded_modules for parameter in module.parameters()}
    return {parameter for parameter in model.parameters() if parameter.ndim >= 2} - excluded


class Muon(Optimizer):
    """The optimizer of Trainer's parameter groups: Muon for the parameters in `matrices`, fused AdamW for the others.

    `use_muon` in a group says which of the two it belongs to. The momentum of a matrix is sharded as the matrix is;
    only the update is gathered in a step, one matrix at a time (under ZeRO one group at a time). Whole matrices of one
    shape are made orthogonal together.
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
        muon_groups = []
        adamw_groups = []
        for group in groups:
            muon_parameters = [parameter for parameter in group["params"] if parameter in matrices]
            if muon_parameters:
                muon_groups.append(
                    {
                        **group,
                        "params": muon_parameters,
                        "momentum": momentum,
                        "shapes": [tuple(parameter.shape) for parameter in muon_parameters],
                        "use_muon": True,
                    }
                )
            adamw_parameters = [parameter for parameter in group["params"] if parameter not in matrices]
            if adamw_parameters:
                adamw_groups.append({**group, "params": adamw_parameters, "use_muon": False})

        self._adamw = AdamW(adamw_groups, lr=lr, betas=betas, eps=eps, fused=True)
        super().__init__([*muon_groups, *self._adamw.param_groups], {"lr": lr, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], torch.Tensor] | None = None) -> torch.Tensor | None:
        """Make one step of both optimizers; parameters without gradient stay as they are."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        # Loading a state dict, and DeepSpeed, replace the groups and the state of this optimizer.
        self._adamw.param_groups = [group for group in self.param_groups if not group["use_muon"]]
        self._adamw.state = self.state
        self._adamw.step()

        for group in self.param_groups:
            if not group["use_muon"]:
                continue
            for parameters in batch_equal_shapes(group["params"]):
                updates = self._orthogonalize(
                    [self._follow_momentum(parameter, group) for parameter in parameters], group
                )
                for parameter, update in zip(parameters, updates, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(update, alpha=-group["lr"])
        return loss

    def _follow_momentum(self, parameter: torch.Tensor, group: dict[str, Any]) -> torch.Tensor:
        """Add the gradient to the momentum of a parameter, and return Nesterov's update."""
        gradient = parameter.grad
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(gradient)

        momentum = state["momentum_buffer"].lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"])

    def _orthogonalize(self, updates: list[torch.Tensor], group: dict[str, Any]) -> Iterable[torch.Tensor]:
        """Orthogonalize one update, or several whole ones of the same shape."""
        if len(updates) > 1:
            return orthogonalize_matrices(torch.stack(updates)).unbind()
        (update,) = updates
        if isinstance(update, DTensor):
            return [orthogonalize_shards(update)]
        if update.ndim == 1:
            return [orthogonalize_partition(update, group["shapes"])]
        return [orthogonalize_matrices(update)]


def batch_equal_shapes(parameters: list[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Group the parameters that have a gradient, so that the whole matrices of one shape take the same products.

    A batched product takes a third to two thirds of the time of small ones in turn (docs/lab.md). A batch has at most
    MAX_BATCH_ELEMENTS, since it is a copy. Parts of matrices and stacked ones stay alone.
    """
    batches: list[list[nn.Parameter]] = []
    open_batches: dict[tuple, list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is None:
            continue
        is_whole_matrix = parameter.ndim == 2 and not isinstance(parameter.grad, DTensor)
        key = (parameter.shape, parameter.dtype, parameter.device)
        batch = open_batches.get(key)
        if batch is None or not is_whole_matrix or (len(batch) + 1) * parameter.numel() > MAX_BATCH_ELEMENTS:
            batch = []
            batches.append(batch)
            if is_whole_matrix:
                open_batches[key] = batch
        batch.append(parameter)
    return batches


def orthogonalize_matrices(matrices: torch.Tensor) -> torch.Tensor:
    """Approximate the orthogonal matrix nearest to each of `matrices` (... x rows x columns), scaled, in float32.

    The scale, 0.2 sqrt(max(rows, columns)), gives its elements the root mean square of AdamW's updates. It is computed
    in `working_type` by Newton-Schulz iteration, which leaves singular values of 0.7 to 1.2; Muon does not need them
    nearer to 1.
    """
    rows, columns = matrices.shape[-2:]
    is_tall = rows > columns

    x = matrices.to(working_type(matrices.device)).reshape(-1, rows, columns)
    if is_tall:
        x = x.mT
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=EPSILON)

    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)  # b gram + c gram^2
        x = torch.baddbmm(x, polynomial, x, beta=a)  # a x + polynomial x

    if is_tall:
        x = x.mT
    scale = UPDATE_RMS * sqrt(max(rows, columns))
    return x.reshape(matrices.shape).float() * scale


def working_type(device: torch.device) -> torch.dtype:
    """Return bfloat16; float32 on a CPU without units for it, which takes up to thirty times as long in bfloat16."""
    if device.type == "cpu" and not has_bf16("cpu"):
        return torch.float32
    return torch.bfloat16


def orthogonalize_shards(update: DTensor) -> DTensor:
    """Orthogonalize a matrix that is spread over processes: each gathers the whole and keeps its part of the result."""
    mesh = update.device_mesh
    gathered = update.to(working_type(update.device)).full_tensor()
    whole = orthogonalize_matrices(gathered)
    replicated = DTensor.from_local(whole, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return replicated.redistribute(mesh, update.placements)


def orthogonalize_partition(update: torch.Tensor, shapes: list[tuple[int, ...]]) -> torch.Tensor:
    """Orthogonalize the matrices of which `update` is this process's part under ZeRO; return its part of the result.

    ZeRO concatenates the elements of all matrices of a group, which have these `shapes`, and cuts them into equal
    partitions. Each process orthogonalizes the matrices that overlap its partition.
    """
    rank = dist.get_rank()
    partition_size = update.numel()
    partition_start = rank * partition_size
    partition_end = partition_start + partition_size

    all_elements = torch.empty(
        partition_size * dist.get_world_size(), dtype=working_type(update.device), device=update.device
    )
    dist.all_gather(list(all_elements.split(partition_size)), update.to(all_elements.dtype))

    result = torch.zeros_like(update)
    matrix_start = 0
    for shape in shapes:
        matrix_end = matrix_start + prod(shape)
        first = max(matrix_start, partition_start)
        last = min(matrix_end, partition_end)
        if first < last:
            matrix = all_elements[matrix_start:matrix_end].view(shape)
            orthogonal = orthogonalize_matrices(matrix).flatten()
            result[first - partition_start : last - partition_start] = orthogonal[
                first - matrix_start : last - matrix_start
            ]
        matrix_start = matrix_end
    return result
