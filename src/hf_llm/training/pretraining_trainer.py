"""A Trainer for pretraining, with label smoothing and z-loss, ramp-ups, and optimizers that Trainer does not know."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_pt_utils import nested_gather

from hf_llm.core.errors import UserError
from hf_llm.core.labels import IGNORE_INDEX
from hf_llm.model.cross_entropy import LossTerms, training_objective
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.parallel.layout import read_layout
from hf_llm.training.batch_rampup import BatchRampup, ContextRampup
from hf_llm.training.exact_evaluation import ExactEvaluation
from hf_llm.training.fault_tolerance.horizon import complete_scheduler_kwargs
from hf_llm.training.optimizers import LOW_RANK_PREFIXES, low_rank_class, optimizer_class


class PretrainingTrainer(ExactEvaluation, Trainer):
    """Trainer for a model that is trained on raw text.

    An evaluation's loss is the mean over all label tokens, `eval_tokens` of them. With `accuracy_key` it also measures
    which share of them is the likeliest token, and logs it under that key.

    Label smoothing (`args.label_smoothing_factor`) and `z_loss` are terms of the loss that is minimized, but not of the
    loss that is logged, so that this can be compared with evaluations and other runs. The minimized value is logged as
    `objective`. Trainer's own label smoothing is not used: it holds all logits, and logs the smoothed loss.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: TrainingArguments,
        *,
        z_loss: float = 0.0,
        accuracy_key: str | None = None,
        **trainer_arguments: Any,
    ):
        self.accuracy_key = accuracy_key
        self.terms = LossTerms(label_smoothing=args.label_smoothing_factor, z_loss=z_loss)
        self.has_terms = any(self.terms)
        if self.has_terms and read_layout().sequence > 1:
            raise UserError("label_smoothing_factor and z_loss do not run in sequence parallelism; use fsdp2 or zero3")
        if args.activation_checkpointing:
            check_activation_checkpointing(model)

        super().__init__(model, args, **trainer_arguments)
        self.label_smoother = None
        # For some models, as GPT-2, Trainer counts labels as if each position predicted its own token, not the next.
        self._loss_shifts_labels |= type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()

        # Set by `batch_rampup.add_rampup_callbacks`; None without a ramp-up.
        self.context_rampup: ContextRampup | None = None
        self.batch_rampup: BatchRampup | None = None

        # How much the terms have added to the loss: in this step so far, and in the steps since the last log entry,
        # with the number of these steps.
        self._added_in_step = torch.zeros((), device=args.device)
        self._added_since_log = torch.zeros((), device=args.device)
        self._steps_since_log = torch.zeros((), device=args.device)

    # ---- optimizer and schedule

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: PreTrainedModel | None = None) -> tuple[Any, Any]:
        """Return the optimizer's class and arguments; unlike Trainer's method, this one knows Muon."""
        return optimizer_class(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the parameters with weight decay: Trainer's choice, without parameters of one dimension.

        Trainer chooses by name and type, and so would decay Mamba's last norm, which is called `norm_f`.
        """
        dimensions = {}
        for name, parameter in model.named_parameters():
            shape = getattr(parameter, "ds_shape", parameter.shape)  # ZeRO-3 leaves an empty tensor in its place
            dimensions[name] = len(shape)
        return [name for name in super().get_decay_parameter_names(model) if dimensions.get(name, 0) >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimizer. Raises UserError where it does not take its settings."""
        model = self.model if model is None else model
        try:
            if self.optimizer is None and self.args.optim.startswith(LOW_RANK_PREFIXES):
                decayed_names = self.get_decay_parameter_names(model)
                decayed = {parameter for name, parameter in model.named_parameters() if name in decayed_names}
                self.optimizer_cls_and_kwargs = low_rank_class(self.args, model, decayed)
            return super().create_optimizer(model)
        except (ValueError, TypeError) as error:
            raise UserError(f"pretrain.training.optim: {' '.join(str(error).split())}") from error

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Create the schedule, after completing its settings from the number of steps."""
        self.args.lr_scheduler_kwargs = complete_scheduler_kwargs(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    # ---- a step

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict], num_batches: int, device: torch.device
    ) -> tuple[list[dict], torch.Tensor | int | None]:
        """Fetch the micro-batches of a step; while the sequence length ramps up, cut their windows."""
        if self.context_rampup is not None:
            epoch_iterator = self.context_rampup.cut_batches(epoch_iterator)
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: torch.Tensor | int | None = None
    ) -> torch.Tensor:
        """Run a micro-batch forward and backward; while the batch size ramps up, as part of a smaller update."""
        training_step = super().training_step
        if self.batch_rampup is None:
            return training_step(model, inputs, num_items_in_batch)
        return self.batch_rampup.run_micro_batch(training_step, model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute Trainer's loss; in training, add the gradient of the terms, and weight micro-batches by their tokens.

        Evaluations get Trainer's loss unchanged.
        """
        unwrapped = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        is_own_model = isinstance(unwrapped, HfLlmForCausalLM)
        needs_only_trainers_loss = is_own_model and not self.has_terms
        if not model.training or read_layout().sequence > 1 or needs_only_trainers_loss:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

        # Trainer multiplies a loss by the number of processes whose tokens are counted together, since their gradients
        # are averaged later.
        scale = 1
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            scale = self.accelerator.num_processes // self.get_tp_size()

        if is_own_model:
            loss, outputs = super().compute_loss(model, {**inputs, **self.terms._asdict()}, True, num_items_in_batch)
            added = outputs.objective * scale - loss.detach()
        else:
            loss, added, outputs = self._compute_stock_loss(model, inputs, num_items_in_batch, scale)

        # Without a count of tokens a step's loss is the mean of its micro-batches' losses.
        divisor = self.current_gradient_accumulation_steps if num_items_in_batch is None else 1
        self.record_added_loss(added / divisor, self.accelerator.sync_gradients)
        return (loss, outputs) if return_outputs else loss

    def _compute_stock_loss(
        self, model: nn.Module, inputs: dict[str, Any], items: torch.Tensor | int | None, scale: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Return the loss of a stock model of transformers, what the terms add to it, and the model's outputs.

        No model is given the number of items, since BERT, ALBERT, DistilBERT and T5 accept it and ignore it. So each
        model returns the mean over its tokens, which is weighted here. A mixture of experts adds its own auxiliary loss
        to balance the experts.
        """
        config = self.model.config
        has_router_loss = hasattr(config, "output_router_logits") and hasattr(config, "router_aux_loss_coef")
        router_arguments = {"output_router_logits": True} if has_router_loss else {}
        outputs = model(**inputs, **router_arguments)

        loss = outputs.loss
        if has_router_loss and outputs.get("aux_loss") is not None:
            # Only the value is subtracted, not the gradient, so that the logged loss stays nats per token.
            loss = loss - config.router_aux_loss_coef * outputs.aux_loss.detach().to(loss.device)

        # Weight the mean by this micro-batch's share of the step's tokens.
        first_label = int(self._loss_shifts_labels)
        label_count = (inputs["labels"][:, first_label:] != IGNORE_INDEX).sum()
        weight = scale
        if items is not None:
            weight = scale * label_count / items
        loss = loss * weight

        added = torch.zeros_like(outputs.loss)
        if self.has_terms:
            shift = self._loss_shifts_labels
            added = compute_added_loss(self.terms, outputs.logits, inputs["labels"], shift) * weight
            loss = loss + (added - added.detach())  # adds the gradient of `added` and not its value
        return loss, added.detach(), outputs

    # ---- an evaluation

    def count_units(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return the `tokens` of a batch that have a label, in this process."""
        first_label = int(self._loss_shifts_labels)
        return {"tokens": (inputs["labels"][:, first_label:] != IGNORE_INDEX).sum()}

    def measure_batch(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Add a batch's loss, tokens and accuracy to the evaluation's sums."""
        tokens = self.count_units(inputs)["tokens"]
        labels = inputs["labels"]
        items = None
        if read_layout().context > 1:
            # Each process of a group has a part of every window, so the count is made before the windows are cut.
            items = self._get_num_items_in_batch([inputs], self.args.device)
            tokens = items * self.evaluation_copies / self.accelerator.num_processes

        cut_windows, inputs = self._prepare_context_parallel_inputs(model, inputs)
        with cut_windows():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True, num_items_in_batch=items)

        self.add_to_evaluation("loss", loss, tokens)
        self.add_to_evaluation("tokens", 1.0, tokens)
        if self.accuracy_key is not None:
            is_predicted = labels != IGNORE_INDEX  # B T
            is_correct = outputs["logits"].argmax(-1) == labels  # B T
            self.add_to_evaluation(self.accuracy_key, is_correct[is_predicted].float().mean(), tokens)
        return loss

    def record_added_loss(self, added: torch.Tensor, ends_step: bool) -> None:
        """Remember for the log what the terms have `added` to the loss of a step, unless that is not finite."""
        self._added_in_step += added
        if ends_step:
            is_finite = self._added_in_step.isfinite()
            self._added_since_log += torch.where(is_finite, self._added_in_step, 0)
            self._steps_since_log += is_finite
            self._added_in_step.zero_()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log as Trainer does, and add `objective` to entries with a training loss."""
        if self.has_terms and "loss" in logs:
            mean_added = self._added_since_log / self._steps_since_log.clamp(min=1)
            mean_added = nested_gather(mean_added, self.args.parallel_mode).mean()
            logs["objective"] = logs["loss"] + mean_added.item()
            self._added_since_log.zero_()
            self._steps_since_log.zero_()
        super().log(logs, start_time)


def check_activation_checkpointing(model: PreTrainedModel) -> None:
    """Raise UserError for a model that cannot recompute its activations instead of keeping them."""
    if not model.supports_gradient_checkpointing:
        raise UserError(
            f"pretrain.training.activation_checkpointing: {type(model).__name__} does not support it; leave it out"
        )


def compute_added_loss(
    terms: LossTerms,
    logits: torch.Tensor,  # B T V
    labels: torch.Tensor,  # B T
    shift: bool,
) -> torch.Tensor:
    """Return what label smoothing and z-loss add to the mean cross-entropy of a stock model's logits.

    `shift` says that each position predicts the label after it.
    """
    if shift:
        logits = logits[:, :-1]
        labels = labels[:, 1:]
    objective, cross_entropy = training_objective(logits.float().flatten(0, 1), labels.flatten(), terms)
    return (objective - cross_entropy) / (labels != IGNORE_INDEX).sum()
