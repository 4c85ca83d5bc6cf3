"""A Trainer of a model whose layers are split (tensor parallelism) or shared out (pipeline parallelism), and sharded
over data-parallel processes as well: the three dimensions of one device mesh.

transformers splits a layer by the model's own plan, PyTorch shards with `fully_shard` and runs the pipeline
(`torch.distributed.pipelining`, one forward, one backward: https://arxiv.org/abs/1806.03377). What is here puts them in
one mesh and gives them what Trainer refuses to models of this kind: checkpoints that can be gone on from, in
`torch.distributed.checkpoint`'s format, and a plain model folder at the end.
"""

import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B
from torch.distributed.pipelining.schedules import ScheduleGPipe
from torch.distributed.tensor import DTensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, TrainingArguments
from transformers.distributed.checkpoint import load_optimizer_distributed, save_optimizer_distributed
from transformers.distributed.configuration_utils import DistributedConfig
from transformers.distributed.pipeline_parallel import apply_pipeline_parallelism
from transformers.distributed.tensor_parallel import apply_tensor_parallelism
from transformers.trainer_utils import SaveStrategy

from hf_llm.core.errors import UserError
from hf_llm.parallel.layout import Layout, keep_own_class, launched_layout
from hf_llm.training.pretraining_trainer import PretrainingTrainer

OPTIMIZER, SCHEDULER = "optimizer", "scheduler.pt"


def trainer_class() -> type[PretrainingTrainer]:
    """The Trainer of pretraining, or, where this launch splits layers, one that can."""
    return ModelParallelTrainer if launched_layout().splits_layers else PretrainingTrainer


# transformers' name for a norm over this process's heads only: its gradient is to be summed over the processes. Its own
# hook does so after every backward pass, and so counts all but the last micro-batch of a step more than once.
PARTIAL = "replicated_with_grad_allreduce"


def split(model: PreTrainedModel, layout: Layout, device: torch.device) -> tuple[DeviceMesh, set[str]]:
    """Keep of `model`, which all processes hold alike, this process's part, on `device`.

    Returns the mesh of processes, and the names of the parameters of which each tensor-parallel process finds only a
    part of the gradient. The vocabulary (embedding and head) is whole in each of them: the model's loss works on it in
    chunks. Raises UserError where the model does not divide.
    """
    check_divides(model, layout)
    mesh = init_device_mesh(
        device.type,
        (layout.replicate, layout.shard, layout.pipeline, layout.tensor),
        mesh_dim_names=("dp_replicate", "dp_shard", "pp", "tp"),
    )
    vocabulary = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [name for name, module in model.named_modules() if any(module is part for part in vocabulary)]
    if layout.pipeline > 1:
        model._pp_forward_wrapped = True  # transformers' own pipeline is one for generation
        apply_pipeline_parallelism(model, mesh["pp"])
    model.to(device)
    partial = set()
    if layout.tensor > 1:
        plan = {name: style for name, style in model.tp_plan.items() if name not in names}
        plan = model._expand_parallel_plan(plan)
        partial = {name for name, style in plan.items() if style == PARTIAL}
        apply_tensor_parallelism(model, mesh["tp"], {name: plan[name] for name in plan if name not in partial})
    if layout.shard > 1:
        shards = mesh["dp_replicate", "dp_shard"] if layout.replicate > 1 else mesh["dp_shard"]
        for layer in model.base_model.layers:
            if any(True for _ in layer.parameters()):
                fully_shard(layer, mesh=shards)
        fully_shard(model, mesh=shards)
        model._is_fsdp_managed_module = True
        keep_own_class(model)
    # What Trainer and accelerate have to know: how many processes share a batch, and how many do not.
    model._is_distributed_loading_by_transformers = True
    model._tp_size = layout.tensor * layout.pipeline
    model.config.distributed_config = DistributedConfig(
        tp_size=model._tp_size, fsdp_size=layout.shard, dp_replicate_size=layout.replicate
    )
    return mesh, partial


def check_divides(model: PreTrainedModel, layout: Layout) -> None:
    """Raise UserError where `model` has too few layers, or heads that do not divide, for the layout."""
    config = model.config
    if layout.pipeline > config.num_hidden_layers:
        raise UserError(f"{layout.pipeline} pipeline stages for {config.num_hidden_layers} layers; use fewer stages")
    for size, kind, key in (
        (layout.pipeline, "pipeline", "cannot_be_piped"),
        (layout.tensor, "tensor", "cannot_be_sliced"),
    ):
        if size > 1 and (switch := getattr(config, key, None)):
            raise UserError(f"model.{switch} does not run in {kind} parallelism; use fsdp2 or zero3")
    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, key, layout.tensor)
        if size % layout.tensor:
            raise UserError(
                f"model.{key}: {size} does not divide by {layout.tensor} tensor-parallel processes; change it, or set "
                "--parallelism_config_tp_size"
            )
    for size, plan, name in ((layout.tensor, model.tp_plan, "tensor"), (layout.pipeline, model.pp_plan, "pipeline")):
        if size > 1 and not plan:
            raise UserError(
                f"model.model_type: {config.model_type} has no plan for {name} parallelism; use fsdp2 or zero3"
            )


class ModelParallelTrainer(PretrainingTrainer):
    """Trainer over a mesh of (replicas x shards) x pipeline stages x tensor-parallel processes.

    A pipeline is given all micro-batches of a step at once.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **more: Any):
        self.layout = launched_layout()
        self.tied = set(model.all_tied_weights_keys)
        embedding = model.get_input_embeddings()
        self.embedding = next(name for name, module in model.named_modules() if module is embedding) + ".weight"
        self.mesh, self.partial = split(model, self.layout, args.device)
        self.micro_batch = args.per_device_train_batch_size
        if self.layout.pipeline > 1:
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1
        # Trainer refuses to save what it cannot resume; here it can.
        strategy, args.save_strategy = args.save_strategy, SaveStrategy.NO
        super().__init__(model, args, **more)
        args.save_strategy = strategy
        self.is_first, self.is_last = self._stage == 0, self._stage == self.layout.pipeline - 1
        # Of a tied embedding the last stage holds a copy of the first's.
        self.copied = {self.embedding} if self.tied and self.is_last and not self.is_first else set()
        self._ends = self._group_of_ends() if self.tied else None
        self._schedule = cache(self._new_schedule)
        if self.layout.pipeline > 1:
            self._whole_forward, model.forward = model.forward, stage_forward(model, self.is_first, self.is_last)

    @property
    def _stage(self) -> int:
        return self.mesh["pp"].get_local_rank()

    def get_train_dataloader(self) -> DataLoader:
        """Trainer's; for a pipeline, which takes whole steps only, without the rest of an epoch that makes none."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last or self.layout.pipeline > 1
        try:
            return super().get_train_dataloader()
        finally:
            self.args.dataloader_drop_last = drop_last

    # ---- a step

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch: torch.Tensor | None = None):
        if self.layout.pipeline == 1:
            loss = super().training_step(model, inputs, num_items_in_batch)
        else:
            model.train()
            loss = self._run(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            self._complete_gradients()
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys=None):
        if self.layout.pipeline == 1:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad():
            return self._run(model, inputs), None, None

    def _run(self, model: nn.Module, inputs: dict, items: torch.Tensor | None = None) -> torch.Tensor:
        """Bring a batch through the pipeline, with `items`, the tokens of the step, and back; the loss, everywhere."""
        inputs = self._prepare_inputs(inputs)
        rows, length = inputs["input_ids"].shape
        micro = self.micro_batch if items is not None else rows
        # Of the data-parallel processes' gradients sharding takes the mean; it is to be that over the step's tokens.
        scale = None if items is None else float(items) / self.layout.data
        schedule, losses = self._schedule(model, rows // micro, micro, length, items is not None), []
        labels = inputs["labels"]
        run = schedule.step if items is not None else schedule.eval
        first = (inputs["input_ids"],) if self.is_first else ()
        target = {"target": labels, "losses": losses} if self.is_last else {}
        model.items, model.terms, model.added = scale, self.terms if items is not None else {}, 0.0
        run(*first, **target, labels=labels, return_outputs=False)
        loss = torch.stack(losses).sum().detach() if losses else torch.zeros((), device=self.args.device)
        known = torch.stack([loss, torch.as_tensor(model.added, device=loss.device)])
        dist.broadcast(known, group=self.mesh["pp"].get_group(), group_src=self.layout.pipeline - 1)
        if model.terms:
            self.note(known[1], True)
        return known[0]

    def _new_schedule(self, model: nn.Module, batches: int, micro: int, length: int, train: bool):
        ids = torch.empty(micro, length, dtype=torch.long, device="meta")
        hidden = torch.empty(micro, length, self.model.config.hidden_size, device="meta", requires_grad=train)
        stage = PipelineStage(
            model,
            self._stage,
            self.layout.pipeline,
            self.args.device,
            input_args=ids if self.is_first else hidden,
            output_args=torch.empty(1, device="meta", requires_grad=train) if self.is_last else hidden,
            group=self.mesh["pp"].get_group(),
        )
        kind = Schedule1F1B if train else ScheduleGPipe
        return kind(stage, batches, loss_fn=lambda loss, labels: loss.sum(), scale_grads=False)

    def _complete_gradients(self) -> None:
        """Make the gradients of what several processes hold alike the same in all of them, before the step."""
        if self.layout.tensor > 1:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and not splits_over(parameter, "tp"):
                    kind = dist.ReduceOp.SUM if name in self.partial else dist.ReduceOp.AVG
                    dist.all_reduce(local(parameter.grad), kind, group=self.mesh["tp"].get_group())
        if self._ends is not None:
            dist.all_reduce(local(self.model.get_parameter(self.embedding).grad), group=self._ends)

    def _group_of_ends(self) -> dist.ProcessGroup | None:
        """First and last stage of this process's pipeline, which both hold the tied embedding; None in between."""
        ranks, mine = self.mesh.mesh, None
        if self.layout.pipeline == 1:
            return None
        for column in ranks.movedim(2, -1).reshape(-1, self.layout.pipeline).tolist():
            ends = [column[0], column[-1]]
            group = dist.new_group(ends)  # which all processes call together
            mine = group if dist.get_rank() in ends else mine
        return mine

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Trainer would average over all processes, stages included; `_complete_gradients` knows which are alike."""

    def _clip_grad_norm(self, model: nn.Module, most: float | None = None) -> torch.Tensor:
        most = self.args.max_grad_norm if most is None else most
        by_mesh, counted = defaultdict(list), defaultdict(list)
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                key = parameter.grad.device_mesh if isinstance(parameter.grad, DTensor) else None
                by_mesh[key].append(parameter)
                if name not in self.copied:
                    counted[key].append(parameter.grad)
        norms = [get_total_norm(gradients) for gradients in counted.values()]
        norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        square = torch.stack(norms).square().sum()
        dist.all_reduce(square, group=self.mesh["pp"].get_group())
        total = square.sqrt()
        if most != float("inf"):
            for group in by_mesh.values():
                clip_grads_with_norm_(group, most, total)
        return total

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> float:
        return (self._clip_grad_norm(model, float("inf")) if grad_norm is None else grad_norm).item()

    # ---- saving and going on

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        weights = self._whole_weights()
        if self.args.should_save:
            config, own = self.model.config, self.model.config.distributed_config
            config.distributed_config = None  # or save_pretrained would gather from processes that are not here
            super()._save(output_dir, weights)
            config.distributed_config = own

    def _whole_weights(self) -> dict[str, torch.Tensor]:
        """In the first process all weights of all stages, on the CPU; nothing in the others."""
        mine = {}
        for name, tensor in self.model.state_dict().items():
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            if self._column_is_first and name not in self.tied | self.copied:
                mine[name] = tensor.detach().cpu()
        if self.layout.pipeline > 1 and self._column_is_first:
            mine = self._collect(mine)
        return mine if dist.get_rank() == 0 else {}

    @property
    def _column_is_first(self) -> bool:
        """Whether this process's pipeline is the one that the first process is in."""
        return not any(self.mesh[name].get_local_rank() for name in ("dp_replicate", "dp_shard", "tp"))

    def _collect(self, mine: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The weights of all stages, in the first of them; tensor by tensor, as a GPU has no room for another stage."""
        group, device = self.mesh["pp"].get_group(), self.args.device
        if not self.is_first:
            dist.send_object_list([{name: (t.shape, t.dtype) for name, t in mine.items()}], group=group, group_dst=0)
            for tensor in mine.values():
                dist.send(tensor.to(device), group=group, group_dst=0)
            return {}
        for stage in range(1, self.layout.pipeline):
            sent: list = [None]
            dist.recv_object_list(sent, group=group, group_src=stage)
            for name, (shape, dtype) in sent[0].items():
                tensor = torch.empty(shape, dtype=dtype, device=device)
                dist.recv(tensor, group=group, group_src=stage)
                mine[name] = tensor.cpu()
        return mine

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        save_optimizer_distributed(self.model, self.optimizer.optimizer, str(Path(output_dir) / OPTIMIZER))
        if self.args.should_save:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Please also save or load the state of the optimizer")
                torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        wanted, weights = set(self.model.state_dict()), {}
        for path in Path(resume_from_checkpoint).glob("model*.safetensors"):
            with safe_open(path, framework="pt") as file:
                weights |= {name: file.get_tensor(name) for name in file.keys() if name in wanted}  # noqa: SIM118
        head = {name: weights[self.embedding] for name in wanted & self.tied}
        set_model_state_dict(self.model, weights | head, options=StateDictOptions(full_state_dict=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            load_optimizer_distributed(self.model, self.optimizer.optimizer, str(Path(checkpoint) / OPTIMIZER))
            schedule = torch.load(Path(checkpoint) / SCHEDULER, weights_only=True)
            # A list per group of parameters, which all have one learning rate; another layout has other groups.
            groups = len(self.optimizer.param_groups)
            each = {key: value[:1] * groups for key, value in schedule.items() if isinstance(value, list)}
            self.lr_scheduler.load_state_dict(schedule | each)


def stage_forward(model: PreTrainedModel, first: bool, last: bool) -> Callable[..., torch.Tensor]:
    """A forward pass of one pipeline stage, in place of the model's.

    Ids (B T) or hidden states (B T D) in; out hidden states, or in the last stage the loss (1,): summed and divided by
    `model.items` where that is set, else the mean. What `model.terms` add to it is counted in `model.added`.
    """
    whole = model.forward

    @wraps(whole)
    def forward(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        entry = {"input_ids": x} if first else {"inputs_embeds": x}
        if not last:
            return model.base_model(**entry, use_cache=False).last_hidden_state
        items = {} if model.items is None else {"num_items_in_batch": model.items}
        outputs = whole(**entry, labels=labels, use_cache=False, **items, **model.terms)
        if model.terms:
            model.added = model.added + (outputs.objective - outputs.loss.detach())
        return outputs.loss.reshape(1)

    return forward


def local(tensor: torch.Tensor) -> torch.Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def splits_over(tensor: torch.Tensor, dimension: str) -> bool:
    """Whether a tensor is spread over this dimension of its mesh."""
    return isinstance(tensor, DTensor) and dimension in tensor.device_mesh.mesh_dim_names
