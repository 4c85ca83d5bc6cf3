"""A Trainer for tensor and pipeline parallelism, combined with sharding over data-parallel processes in one mesh.

Tensor parallelism splits each layer over processes, pipeline parallelism distributes the layers over them. transformers
splits a layer by the model's own plan; PyTorch shards with `fully_shard` and runs the pipeline
(`torch.distributed.pipelining`, one forward, one backward: https://arxiv.org/abs/1806.03377). This module combines
them, and adds what Trainer does not offer for such models: checkpoints to resume from, in
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

# Where a checkpoint holds the states of optimizer and learning-rate schedule.
OPTIMIZER_FOLDER = "optimizer"
SCHEDULER_FILE = "scheduler.pt"

# transformers' name for a parameter that every process holds whole but applies to its own heads only (a norm of queries
# or keys): its gradient must be summed over the processes. `_reduce_gradients` does that once a step. transformers' own
# hook would do it after every backward pass, and so count earlier micro-batches of the step more than once.
PARTIAL_GRADIENT_STYLE = "replicated_with_grad_allreduce"


def trainer_class() -> type[PretrainingTrainer]:
    """Return the Trainer class for pretraining in this launch."""
    if read_layout().splits_layers:
        return ModelParallelTrainer
    return PretrainingTrainer


def split_model(model: PreTrainedModel, layout: Layout, device: torch.device) -> tuple[DeviceMesh, set[str]]:
    """Reduce `model`, which all processes hold whole, to this process's part of it, and move that to `device`.

    Embedding and head stay whole in each tensor-parallel process, since the model computes its loss in chunks of the
    vocabulary. Returns the mesh of processes, and the names of the parameters for which each tensor-parallel process
    computes only a part of the gradient. Raises UserError where the model does not divide.
    """
    check_model_divides(model, layout)
    mesh = init_device_mesh(
        device.type,
        (layout.replicate, layout.shard, layout.pipeline, layout.tensor),
        mesh_dim_names=("dp_replicate", "dp_shard", "pp", "tp"),
    )

    # Looked up first, because a pipeline stage then loses the modules of the other stages.
    vocabulary_names = _vocabulary_module_names(model)

    # Pipeline: keep this stage's layers. The flag skips transformers' own forward pass, which is for generation.
    if layout.pipeline > 1:
        model._pp_forward_wrapped = True
        apply_pipeline_parallelism(model, mesh["pp"])
    model.to(device)

    # Tensor parallelism: split the matrices of these layers.
    partial_names = set()
    if layout.tensor > 1:
        plan = {name: style for name, style in model.tp_plan.items() if name not in vocabulary_names}
        plan = model._expand_parallel_plan(plan)
        partial_names = {name for name, style in plan.items() if style == PARTIAL_GRADIENT_STYLE}
        split_plan = {name: style for name, style in plan.items() if name not in partial_names}
        apply_tensor_parallelism(model, mesh["tp"], split_plan)

    # Data parallelism: shard what is left.
    if layout.shard > 1:
        _shard_model(model, layout, mesh)

    # From these, Trainer and accelerate compute how many processes share a batch.
    model._is_distributed_loading_by_transformers = True
    model._tp_size = layout.tensor * layout.pipeline
    model.config.distributed_config = DistributedConfig(
        tp_size=model._tp_size, fsdp_size=layout.shard, dp_replicate_size=layout.replicate
    )
    return mesh, partial_names


def _vocabulary_module_names(model: PreTrainedModel) -> list[str]:
    """Return the names of the model's embedding and head."""
    embedding = model.get_input_embeddings()
    head = model.get_output_embeddings()
    return [name for name, module in model.named_modules() if module is embedding or module is head]


def _shard_model(model: PreTrainedModel, layout: Layout, mesh: DeviceMesh) -> None:
    """Shard each layer, and the modules outside of layers, over the data-parallel processes (FSDP2)."""
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

    A pipeline runs all micro-batches of a step at once, so for Trainer they are one batch without accumulation.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, **trainer_arguments: Any):
        self.layout = read_layout()

        # Names are looked up before the model is split.
        self.tied_names = set(model.all_tied_weights_keys)
        embedding = model.get_input_embeddings()
        embedding_module = next(name for name, module in model.named_modules() if module is embedding)
        self.embedding_name = embedding_module + ".weight"

        self.mesh, self.partial_names = split_model(model, self.layout, args.device)

        self.micro_batch = args.per_device_train_batch_size
        if self.layout.pipeline > 1:
            args.per_device_train_batch_size *= args.gradient_accumulation_steps
            args.gradient_accumulation_steps = 1

        # Trainer's constructor refuses checkpoints of such models, which it cannot resume from; this class can.
        save_strategy = args.save_strategy
        args.save_strategy = SaveStrategy.NO
        super().__init__(model, args, **trainer_arguments)
        args.save_strategy = save_strategy

        self.is_first_stage = self._stage == 0
        self.is_last_stage = self._stage == self.layout.pipeline - 1

        # Where head and embedding are tied, the first stage has the embedding and the last stage a copy of it.
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
        """Return Trainer's loader; for a pipeline, which runs whole steps, without an epoch's incomplete last step."""
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

    def measure_batch(self, model: nn.Module, inputs: dict) -> torch.Tensor:
        """Add a batch's loss and tokens to the evaluation's sums."""
        if self.layout.pipeline == 1:
            return super().measure_batch(model, inputs)

        loss = self._run_pipeline(model, inputs)
        tokens = self.count_units(inputs)["tokens"]
        self.add_to_evaluation("loss", loss, tokens)
        self.add_to_evaluation("tokens", 1.0, tokens)
        return loss

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

        # The stage's forward pass reads these attributes (`create_stage_forward`). Sharding averages the gradients of
        # the data-parallel processes; dividing by this share of the step's tokens makes that the mean over all tokens.
        model.items = float(items) / self.layout.data if is_training else None
        model.terms = self.terms if is_training else {}
        model.added = 0.0

        losses = []
        first_stage_inputs = (inputs["input_ids"],) if self.is_first_stage else ()
        last_stage_inputs = {"target": labels, "losses": losses} if self.is_last_stage else {}
        run_schedule = schedule.step if is_training else schedule.eval
        run_schedule(*first_stage_inputs, **last_stage_inputs, labels=labels, return_outputs=False)

        # Only the last stage knows the loss and what the terms have added to it, so it tells the other stages.
        loss = torch.zeros((), device=self.args.device)
        if losses:
            loss = torch.stack(losses).sum().detach()
        loss_and_added = torch.stack([loss, torch.as_tensor(model.added, device=loss.device)])
        dist.broadcast(loss_and_added, group=self.mesh["pp"].get_group(), group_src=self.layout.pipeline - 1)

        if model.terms:
            self.record_added_loss(loss_and_added[1], ends_step=True)
        return loss_and_added[0]

    def _create_schedule(self, model: nn.Module, micro_batches: int, rows: int, length: int, train: bool):
        """Create the schedule that runs `micro_batches` of `rows` x `length` tokens through the pipeline."""
        # Tensors without data tell torch the shapes that pass between stages.
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
        """Reduce the gradients of parameters that several processes hold alike, before the optimizer's step."""
        if self.layout.tensor > 1:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is None or is_split_in_dimension(parameter, "tp"):
                    continue
                operation = dist.ReduceOp.SUM if name in self.partial_names else dist.ReduceOp.AVG
                dist.all_reduce(local_tensor(parameter.grad), operation, group=self.mesh["tp"].get_group())

        # A tied embedding gets gradients in the first and in the last stage.
        if self._group_of_ends is not None:
            embedding = self.model.get_parameter(self.embedding_name)
            dist.all_reduce(local_tensor(embedding.grad), group=self._group_of_ends)

    def _create_group_of_ends(self) -> dist.ProcessGroup | None:
        """Create the group of first and last stage, which both hold the tied embedding; None in the stages between."""
        if self.layout.pipeline == 1:
            return None

        own_group = None
        pipelines = self.mesh.mesh.movedim(2, -1).reshape(-1, self.layout.pipeline)  # a row of ranks for each pipeline
        for ranks in pipelines.tolist():
            ends = [ranks[0], ranks[-1]]
            group = dist.new_group(ends)  # all processes have to call this together
            if dist.get_rank() in ends:
                own_group = group
        return own_group

    def _sync_replicated_trainable_parameters(self, model: nn.Module) -> None:
        """Do nothing: Trainer would average over all processes, even those of other stages; see `_reduce_gradients`."""

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

        norms = []
        for gradients in counted_by_mesh.values():
            norm = get_total_norm(gradients)
            norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
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
        config.distributed_config = (
            None  # otherwise save_pretrained would gather the weights again, in this process alone
        )
        super()._save(output_dir, weights)
        config.distributed_config = distributed_config

    def _gather_weights(self) -> dict[str, torch.Tensor]:
        """Return all weights of all stages on the CPU in the first process; nothing in the others."""
        is_first_pipeline = self._is_in_first_pipeline
        weights = {}
        for name, tensor in self.model.state_dict().items():
            if isinstance(tensor, DTensor):
                tensor = tensor.full_tensor()  # all processes have to call this together
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

        They are sent one by one, since a GPU has no room for a second stage.
        """
        group = self.mesh["pp"].get_group()
        device = self.args.device

        # Every other stage sends the shapes of its weights, then the weights.
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

        # A tied head is not in the files: it is loaded from the embedding.
        for name in names & self.tied_names:
            weights[name] = weights[self.embedding_name]
        set_model_state_dict(self.model, weights, options=StateDictOptions(full_state_dict=True))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        load_optimizer_distributed(self.model, self.optimizer.optimizer, str(folder / OPTIMIZER_FOLDER))

        # The schedule's lists have an item for each parameter group, all alike. The checkpoint may be from another
        # layout, which has another number of groups.
        schedule = torch.load(folder / SCHEDULER_FILE, weights_only=True)
        group_count = len(self.optimizer.param_groups)
        for key, value in schedule.items():
            if isinstance(value, list):
                schedule[key] = value[:1] * group_count
        self.lr_scheduler.load_state_dict(schedule)


def create_stage_forward(model: PreTrainedModel, is_first: bool, is_last: bool) -> Callable[..., torch.Tensor]:
    """Create the forward pass of one pipeline stage, which replaces the model's.

    The first stage takes ids (B T), the others hidden states (B T D). The last stage returns the loss (1,), the others
    hidden states. The loss is the sum divided by `model.items` where that is set, otherwise the mean; what
    `model.terms` add to it is added to `model.added`.
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
    """Return this process's part of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_split_in_dimension(tensor: torch.Tensor, dimension: str) -> bool:
    """Whether a tensor is spread over the mesh dimension of this name."""
    return isinstance(tensor, DTensor) and dimension in tensor.device_mesh.mesh_dim_names
