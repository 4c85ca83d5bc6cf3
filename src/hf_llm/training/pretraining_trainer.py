"""A Trainer with what pretraining needs beyond transformers' own: terms of the loss beside cross-entropy."""

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import PreTrainedModel, Trainer, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.trainer_pt_utils import nested_gather

from hf_llm.core.errors import UserError
from hf_llm.model.cross_entropy import training_objective
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.parallel.layout import launched_layout
from hf_llm.training.optimizers import LOW_RANK, low_rank_optimizer, optimizer_class
from hf_llm.training.schedules import schedule_settings


class PretrainingTrainer(Trainer):
    """Trainer for a model that learns from raw text.

    Label smoothing (`args.label_smoothing_factor`) and `z_loss` are in the gradient and not in the loss that is logged,
    which stays comparable with evaluations and other runs; the value of what is trained for is logged beside it, as
    `objective`. Trainer's own label smoothing holds all logits, and logs the smoothed loss.
    """

    def __init__(self, model: PreTrainedModel, args: TrainingArguments, *, z_loss: float = 0.0, **more: Any):
        terms = {"label_smoothing": args.label_smoothing_factor, "z_loss": z_loss}
        self.terms = {name: weight for name, weight in terms.items() if weight}
        if self.terms and launched_layout().sequence > 1:
            raise UserError("label_smoothing_factor and z_loss do not run in sequence parallelism; use fsdp2 or zero3")
        if args.activation_checkpointing:
            check_checkpointing(model)
        super().__init__(model, args, **more)
        self.label_smoother = None
        # Trainer counts GPT-2's labels as if each predicted itself.
        self._loss_shifts_labels |= type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
        # What the terms have added to the loss: in this step, and in the steps since the last log and their number.
        self._step, self._sum, self._steps = torch.zeros(3, device=args.device)

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: TrainingArguments, model: PreTrainedModel | None = None) -> tuple[Any, Any]:
        """Trainer's, which knows no Muon."""
        return optimizer_class(args, model)

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Trainer's, which goes by name and type, less what has one dimension: Mamba's last norm is a `norm_f`."""
        shapes = {name: getattr(parameter, "ds_shape", parameter.shape) for name, parameter in model.named_parameters()}
        return [name for name in super().get_decay_parameter_names(model) if len(shapes.get(name, ())) >= 2]

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Trainer's; where an optimizer does not take its settings, a UserError that says why."""
        model = self.model if model is None else model
        try:
            if self.optimizer is None and self.args.optim.startswith(LOW_RANK):
                names = self.get_decay_parameter_names(model)
                decayed = {parameter for name, parameter in model.named_parameters() if name in names}
                self.optimizer_cls_and_kwargs = low_rank_optimizer(self.args, model, decayed)
            return super().create_optimizer(model)
        except (ValueError, TypeError) as error:
            raise UserError(f"pretrain.training.optim: {' '.join(str(error).split())}") from error

    def create_scheduler(self, num_training_steps: int, optimizer: Optimizer | None = None) -> LRScheduler:
        """Trainer's, with the schedule's settings completed now that the number of steps is known."""
        self.args.lr_scheduler_kwargs = schedule_settings(self.args, num_training_steps)
        return super().create_scheduler(num_training_steps, optimizer)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Trainer's; in training with the gradient of the terms, and each micro-batch counted by its tokens."""
        bare = self.accelerator.unwrap_model(model, keep_torch_compile=False)
        own = isinstance(bare, HfLlmForCausalLM)
        if not model.training or launched_layout().sequence > 1 or (own and not self.terms):
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        shared = self.args.average_tokens_across_devices and num_items_in_batch is not None
        scale = self.accelerator.num_processes // self.get_tp_size() if shared else 1  # Trainer multiplies a loss by it
        if own:
            loss, outputs = super().compute_loss(model, {**inputs, **self.terms}, True, num_items_in_batch)
            added = outputs.objective * scale - loss.detach()
        else:
            loss, added, outputs = self._loss_of_stock_model(model, inputs, num_items_in_batch, scale)
        batches = self.current_gradient_accumulation_steps if num_items_in_batch is None else 1
        self.note(added / batches, self.accelerator.sync_gradients)
        return (loss, outputs) if return_outputs else loss

    def _loss_of_stock_model(
        self, model: nn.Module, inputs: dict[str, Any], items: torch.Tensor | int | None, scale: int
    ) -> tuple[torch.Tensor, torch.Tensor, Any]:
        """Loss, what the terms add to it, and the outputs; a mixture of experts is balanced by its own loss.

        BERT, ALBERT, DistilBERT and T5 take the number of items and leave it unread, so no model is told it: each gives
        its mean, which is weighed here.
        """
        shift, config = self._loss_shifts_labels, self.model.config
        balanced = hasattr(config, "output_router_logits") and hasattr(config, "router_aux_loss_coef")
        outputs = model(**inputs, **({"output_router_logits": True} if balanced else {}))
        here = (inputs["labels"][:, int(shift) :] != -100).sum()
        share = scale if items is None else scale * here / items
        loss, added = outputs.loss, torch.zeros_like(outputs.loss)
        if balanced and outputs.get("aux_loss") is not None:  # for the gradient alone: the loss stays nats per token
            loss = loss - config.router_aux_loss_coef * outputs.aux_loss.detach().to(loss.device)
        loss = loss * share
        if self.terms:
            added = added_by(self.terms, outputs.logits, inputs["labels"], shift) * share
            loss = loss + (added - added.detach())
        return loss, added.detach(), outputs

    def note(self, added: torch.Tensor, ends_step: bool) -> None:
        """Remember for the log what the terms have `added` to the loss, unless that is not finite."""
        self._step += added
        if ends_step:
            finite = self._step.isfinite()
            self._sum += torch.where(finite, self._step, 0)
            self._steps += finite
            self._step.zero_()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Trainer's, with the `objective` beside a training's loss."""
        if self.terms and "loss" in logs:
            added = nested_gather(self._sum / self._steps.clamp(min=1), self.args.parallel_mode).mean()
            logs["objective"] = logs["loss"] + added.item()
            self._sum.zero_(), self._steps.zero_()
        super().log(logs, start_time)


def check_checkpointing(model: PreTrainedModel) -> None:
    """Raise UserError for a model that cannot compute its activations again instead of keeping them."""
    if not model.supports_gradient_checkpointing:
        raise UserError(f"pretrain.training.activation_checkpointing: {type(model).__name__} has none; leave it out")


def added_by(
    terms: dict[str, float],
    logits: torch.Tensor,  # B T V
    labels: torch.Tensor,  # B T
    shift: bool,
) -> torch.Tensor:
    """What label smoothing and z-loss add to the mean cross-entropy of a stock model, which gives its logits; `shift`
    where each predicts the label after it."""
    if shift:
        logits, labels = logits[:, :-1], labels[:, 1:]
    weights = {"label_smoothing": 0.0, "z_loss": 0.0, **terms}
    objective, plain = training_objective(logits.float().flatten(0, 1), labels.flatten(), **weights)
    return (objective - plain) / (labels != -100).sum()
