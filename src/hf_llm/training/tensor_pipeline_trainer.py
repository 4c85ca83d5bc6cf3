"""A Trainer for a model whose layers are split (tensor parallelism) or distributed (pipeline parallelism), and sharded
over data-parallel processes as well: the three dimensions of one device mesh.

transformers splits a layer by the model's own plan, PyTorch shards with `fully_shard` and runs the pipeline
(`torch.distributed.pipelining`, one forward, one backward: https://arxiv.org/abs/1806.03377). This module puts them in
one mesh and adds what Trainer refuses to models of this kind: checkpoints to resume from, in
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
from hf_llm.parallel.layout import Layout, read_layout, restore_class_name
from hf_llm.training.pretraining_trainer import PretrainingTrainer

# In a checkpoint: the folder of the optimizer's state, and the file of the schedule's.
OPTIMIZER_FOLDER = "optimizer"
SCHEDULER_FILE = "scheduler.pt"

# transformers' name for a norm over this process's heads only: its gradient is to be summed over the processes. Its own
# hook does so after every backward pass, and so counts all but the last micro-batch of a step more than once.
PARTIAL_GRADIENT_STYLE = "replicated_with_grad_allreduce"


def trainer_class() -> type[PretrainingTrainer]:
    """Return the Trainer of pretraining; where this launch splits layers, the one that can train them."""
    if read_layout().splits_layers:
        return ModelParallelTrainer
    return PretrainingTrainer


def split_model(model: PreTrainedModel, layout: Layout, device: torch.device) -> tuple[DeviceMesh, set[str]]:
    """Keep this process's part of `model`, which all processes hold alike, on `device`.

    Returns the mesh of processes, and the names of the parameters for which each tensor-parallel process computes only
    a part of the gradient. The vocabulary (embedding and head) is whole in each of them: the model's loss works on it
    in chunks. Raises UserError where the model does not divide.
    """
    check_model_divides(model, layout)
    mesh = init_device_mesh(
        device.type,
        (layout.replicate, layout.shard, layout.pipeline, layout.tensor),
        mesh_dim_names=("dp_replicate", "dp_shard", "pp", "tp"),
    )

    # Before a pipeline stage loses the modules of the others.
    vocabulary_names = _vocabulary_module_names(model)

    if layout.pipeline > 1:
        model._pp_forward_wrapped = True  # transformers' own pipeline is one for generation
        apply_pipeline_parallelism(model, mesh["pp"])
    model.to(device)

    partial_names = set()
    if layout.tensor > 1:
        plan = {name: style for name, style in model.tp_plan.items() if name not in vocabulary_names}
        plan = model._expand_parallel_plan(plan)
        partial_names = {name for name, style in plan.items() if style == PARTIAL_GRADIENT_STYLE}
        plan_of_rest = {name: style for name, style in plan.items() if name not in partial_names}
        apply_tensor_parallelism(model, mesh["tp"], plan_of_rest)

    if layout.shard > 1:
        _shard_model(model, layout, mesh)

    # Trainer and accelerate have to know how many processes share a batch, and how many do not.
    model._is_distributed_loading_by_transformers = True
    model._tp_size = layout.tensor * layout.pipeline
    model.config.distributed_config = DistributedConfig(
        tp_size=model._tp_size, fsdp_size=layout.shard, dp_replicate_size=layout.replicate
    )
    return mesh, partial_names


def _vocabulary_module_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the modules that are the model's embedding or its head."""
    vocabulary = (model.get_input_embeddings(), model.get_output_embeddings())
    return [name for name, module in model.named_modules() if any(module is part for part in vocabulary)]


def _shard_model(model: PreTrainedModel, layout: Layout, mesh: DeviceMesh) -> None:
    """Shard each layer, and what is around them, over the data-parallel processes (FSDP2)."""
    data_mesh = mesh["dp_shard"]
    if layout.replicate > 1:
        data_mesh = mesh["dp_replicate", "dp_shard"]

    for layer in model.base_model.layers:
        has_parameters = any(True for _ in layer.parameters())
        if has_parameters:
            fully_shard(layer, mesh=data_mesh)
    fully_shard(model, mesh=data_mesh)
    model._is_fsdp_managed_module = True
    restore_class_name(model)


def check_model_divides(model: PreTrainedModel, layout: Layout) -> None:
    """Raise UserError where `model` has too few layers, or heads that do not divide, for the layout."""
    config = model.config
    if layout.pipeline > config.num_hidden_layers:
        raise UserError(f"{layout.pipeline} pipeline stages for {config.num_hidden_layers} layers; use fewer stages")

    for size, kind, key in (
        (layout.pipeline, "pipeline", "cannot_be_piped"),
        (layout.tensor, "tensor", "cannot_be_sliced"),
    ):
        switch = getattr(config, key, None)  # the name of the model switch that forbids it
        if size > 1 and switch:
            raise UserError(f"model.{switch} does not run in {kind} parallelism; use fsdp2 or zero3")

    for key in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
        size = getattr(config, key, layout.tensor)
        if size % layout.tensor:
            raise UserError(
                f"model.{key}: {size} does not divide by {layout.tensor} tensor-parallel processes; change it, or set "
                "--parallelism_config_tp_size"
            )

    for size, plan, kind in ((layout.tensor, model.tp_plan, "tensor"), (layout.pipeline, model.pp_plan, "pipeline")):
        if size > 1 and not plan:
            raise UserError(
                f"model.model_type: {config.model_type} has no plan for {kind} parallelism; use fsdp2 or zero3"
            )


class ModelParallelTrainer(PretrainingTrainer):
    """Trainer over a mesh of (replicas x shards) x pipeline stages x tensor-parallel processes.

    A pipeline is given all micro-batches of a step at once.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **more: Any):
        self.layout = read_layout()
        self.tied_names = set(model.all_tied_weights_keys)
        embedding = model.get_input_embeddings()
        embedding_module = next(name for name, module in model.named_modules() if module is embedding)
        self.embedding_name = embedding_module + ".weight"

        self.mesh, self.partial_names = split_model(model, self.layout, args.device)

        self.micro_batch = args.per_device_train_batch_size
        if self.layout.pipeline > 1:
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1

        # Trainer refuses to save what it cannot resume from; this Trainer can.
        save_strategy = args.save_strategy
        args.save_strategy = SaveStrategy.NO
        super().__init__(model, args, **more)
        args.save_strategy = save_strategy

        self.is_first_stage = self._stage == 0
        self.is_last_stage = self._stage == self.layout.pipeline - 1

        # Of a tied embedding the last stage holds a copy of the first's.
        self.copied_names = set()
        if self.tied_names and self.is_last_stage and not self.is_first_stage:
            self.copied_names = {self.embedding_name}
        self._group_of_ends = self._create_group_of_ends() if self.tied_names else None

        self._get_schedule = cache(self._create_schedule)
        if self.layout.pipeline > 1:
            model.forward = create_stage_forward(model, self.is_first_stage, self.is_last_stage)

    @property
    def _stage(self) -> int:
        return self.mesh["pp"].get_local_rank()

    def get_train_dataloader(self) -> DataLoader:
        """Return Trainer's; for a pipeline, which takes whole steps only, without an epoch's incomplete last step."""
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
            loss = self._run_pipeline(model, inputs, num_items_in_batch)

        if self.accelerator.sync_gradients:
            self._reduce_gradients()
        return loss

    def prediction_step(self, model: nn.Module, inputs: dict, prediction_loss_only: bool, ignore_keys=None):
        if self.layout.pipeline == 1:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        with torch.no_grad():
            return self._run_pipeline(model, inputs), None, None

    def _run_pipeline(self, model: nn.Module, inputs: dict, items: torch.Tensor | None = None) -> torch.Tensor:
        """Run a batch through the pipeline and return its loss in every stage.

        With `items`, the number of tokens of the step, also backward; without, forward only.
        """
        inputs = self._prepare_inputs(inputs)
        labels = inputs["labels"]
        rows, length = inputs["input_ids"].shape
        is_training = items is not None
        micro_batch = self.micro_batch if is_training else rows

        schedule = self._get_schedule(model, rows // micro_batch, micro_batch, length, is_training)

        # What the stage's forward pass reads (`create_stage_forward`). Sharding takes the mean of the data-parallel
        # processes' gradients, and that has to be the mean over the step's tokens.
        model.items = float(items) / self.layout.data if is_training else None
        model.terms = self.terms if is_training else {}
        model.added = 0.0

        losses = []
        first_stage_inputs = (inputs["input_ids"],) if self.is_first_stage else ()
        last_stage_inputs = {"target": labels, "losses": losses} if self.is_last_stage else {}
        run_schedule = schedule.step if is_training else schedule.eval
        run_schedule(*first_stage_inputs, **last_stage_inputs, labels=labels, return_outputs=False)

        # Only the last stage knows the loss and what the terms have added to it.
        loss = torch.zeros((), device=self.args.device)
        if losses:
            loss = torch.stack(losses).sum().detach()
        loss_and_added = torch.stack([loss, torch.as_tensor(model.added, device=loss.device)])
        dist.broadcast(loss_and_added, group=self.mesh["pp"].get_group(), group_src=self.layout.pipeline - 1)

        if model.terms:
            self.record_added_loss(loss_and_added[1], ends_step=True)
        return loss_and_added[0]

    def _create_schedule(self, model: nn.Module, micro_batches: int, rows: int, length: int, train: bool):
        """Create the schedule of `micro_batches` of `rows` x `length` tokens through the pipeline."""
        ids = torch.empty(rows, length, dtype=torch.long, device="meta")
        hidden = torch.empty(rows, length, self.model.config.hidden_size, device="meta", requires_grad=train)
        loss = torch.empty(1, device="meta", requires_grad=train)
        stage = PipelineStage(
            model,
            self._stage,
            self.layout.pipeline,
            self.args.device,
            input_args=ids if self.is_first_stage else hidden,
            output_args=loss if self.is_last_stage else hidden,
            group=self.mesh["pp"].get_group(),
        )
        schedule_class = Schedule1F1B if train else ScheduleGPipe
        return schedule_class(stage, micro_batches, loss_fn=lambda loss, labels: loss.sum(), scale_grads=False)

    def _reduce_gradients(self) -> None:
        """Before the optimizer's step, reduce the gradients of what several processes hold alike."""
        if self.layout.tensor > 1:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is None or is_split_in_dimension(parameter, "tp"):
                    continue
                operation = dist.ReduceOp.SUM if name in self.partial_names else dist.ReduceOp.AVG
                dist.all_reduce(local_tensor(parameter.grad), operation, group=self.mesh["tp"].get_group())

        if self._group_of_ends is not None:
            embedding = self.model.get_parameter(self.embedding_name)
            dist.all_reduce(local_tensor(embedding.grad), group=self._group_of_ends)

    def _create_group_of_ends(self) -> dist.ProcessGroup | None:
        """Create the group of first and last stage, which both hold the tied embedding; None in the stages between."""
        if self.layout.pipeline == 1:
            return None

        own_group = None
        pipelines = self.mesh.mesh.movedim(2, -1).reshape(-1, self.layout.pipeline)
        for ranks in pipelines.tolist():
            ends = [ranks[0], ranks[-1]]
            group = dist.new_group(ends)  # all processes have to call this together
            if dist.get_rank() in ends:
                own_group = group
        return own_group

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Do nothing: Trainer would average over all processes, stages included; `_reduce_gradients` averages right."""

    def _clip_grad_norm(self, model: nn.Module, max_norm: float | None = None) -> torch.Tensor:
        """Clip the gradients by their norm over the whole model, all stages together; return the norm."""
        max_norm = self.args.max_grad_norm if max_norm is None else max_norm

        # Grouped by mesh, since torch's norms do not mix DTensors of several meshes.
        parameters_by_mesh = defaultdict(list)
        counted_by_mesh = defaultdict(list)
        for name, parameter in self.model.named_parameters():
            gradient = parameter.grad
            if gradient is None:
                continue
            mesh = gradient.device_mesh if isinstance(gradient, DTensor) else None
            parameters_by_mesh[mesh].append(parameter)
            if name not in self.copied_names:
                counted_by_mesh[mesh].append(gradient)

        norms = [get_total_norm(gradients) for gradients in counted_by_mesh.values()]
        norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        square = torch.stack(norms).square().sum()
        dist.all_reduce(square, group=self.mesh["pp"].get_group())
        total_norm = square.sqrt()

        if max_norm != float("inf"):
            for parameters in parameters_by_mesh.values():
                clip_grads_with_norm_(parameters, max_norm, total_norm)
        return total_norm

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> float:
        if grad_norm is None:
            grad_norm = self._clip_grad_norm(model, float("inf"))
        return grad_norm.item()

    # ---- saving and resuming

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        weights = self._gather_weights()
        if not self.args.should_save:
            return
        config = self.model.config
        distributed_config = config.distributed_config
        config.distributed_config = None  # or save_pretrained would gather from processes that do not take part
        super()._save(output_dir, weights)
        config.distributed_config = distributed_config

    def _gather_weights(self) -> dict[str, torch.Tensor]:
        """Return all weights of all stages on the CPU in the first process; nothing in the others."""
        is_first_pipeline = self._is_in_first_pipeline
        weights = {}
        for name, tensor in self.model.state_dict().items():
            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor()  # in every process, also where the result is not kept
            if is_first_pipeline and name not in self.tied_names | self.copied_names:
                weights[name] = tensor.detach().cpu()

        if self.layout.pipeline > 1 and is_first_pipeline:
            weights = self._collect_stages(weights)
        return weights if dist.get_rank() == 0 else {}

    @property
    def _is_in_first_pipeline(self) -> bool:
        """Whether this process's pipeline is the one that the first process is in."""
        return not any(self.mesh[name].get_local_rank() for name in ("dp_replicate", "dp_shard", "tp"))

    def _collect_stages(self, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the weights of all stages in the first stage, nothing in the others.

        They are sent tensor by tensor, since a GPU has no room for another stage.
        """
        group = self.mesh["pp"].get_group()
        device = self.args.device

        if not self.is_first_stage:
            shapes = {name: (tensor.shape, tensor.dtype) for name, tensor in weights.items()}
            dist.send_object_list([shapes], group=group, group_dst=0)
            for tensor in weights.values():
                dist.send(tensor.to(device), group=group, group_dst=0)
            return {}

        for stage in range(1, self.layout.pipeline):
            message: list = [None]
            dist.recv_object_list(message, group=group, group_src=stage)
            for name, (shape, dtype) in message[0].items():
                tensor = torch.empty(shape, dtype=dtype, device=device)
                dist.recv(tensor, group=group, group_src=stage)
                weights[name] = tensor.cpu()
        return weights

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        folder = Path(output_dir)
        save_optimizer_distributed(self.model, self.optimizer.optimizer, str(folder / OPTIMIZER_FOLDER))
        if self.args.should_save:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Please also save or load the state of the optimizer")
                torch.save(self.lr_scheduler.state_dict(), folder / SCHEDULER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        names = set(self.model.state_dict())
        weights = {}
        for path in Path(resume_from_checkpoint).glob("model*.safetensors"):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118
                    if name in names:
                        weights[name] = file.get_tensor(name)

        # A tied head is not in the file.
        for name in names & self.tied_names:
            weights[name] = weights[self.embedding_name]
        set_model_state_dict(self.model, weights, options=StateDictOptions(full_state_dict=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        load_optimizer_distributed(self.model, self.optimizer.optimizer, str(folder / OPTIMIZER_FOLDER))

        schedule = torch.load(folder / SCHEDULER_FILE, weights_only=True)
        # Its lists have an item per parameter group, all with one learning rate; another layout has other groups.
        group_count = len(self.optimizer.param_groups)
        for key, value in schedule.items():
            if isinstance(value, list):
                schedule[key] = value[:1] * group_count
        self.lr_scheduler.load_state_dict(schedule)


def create_stage_forward(model: PreTrainedModel, is_first: bool, is_last: bool) -> Callable[..., torch.Tensor]:
    """Create the forward pass of one pipeline stage, which replaces the model's.

    It takes ids (B T) or hidden states (B T D), and returns hidden states, or in the last stage the loss (1,): summed
    and divided by `model.items` where that is set, else the mean. It adds to `model.added` what `model.terms` add to
    the loss.
    """
    whole_forward = model.forward

    @wraps(whole_forward)
    def forward(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        stage_input = {"input_ids": x} if is_first else {"inputs_embeds": x}
        if not is_last:
            return model.base_model(**stage_input, use_cache=False).last_hidden_state

        items = {} if model.items is None else {"num_items_in_batch": model.items}
        outputs = whole_forward(**stage_input, labels=labels, use_cache=False, **items, **model.terms)
        if model.terms:
            model.added = model.added + (outputs.objective - outputs.loss.detach())
        return outputs.loss.reshape(1)

    return forward


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return what this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_split_in_dimension(tensor: torch.Tensor, dimension: str) -> bool:
    """Whether a tensor is spread over this dimension of its mesh."""
    return isinstance(tensor, DTensor) and dimension in tensor.device_mesh.mesh_dim_names
