"""Hidden states to logits or to the loss, chunk by chunk. This file travels with the weights.

Shapes at line ends:
    B batch   T tokens   D hidden_size   V vocab_size   N = B * T   C tokens of a chunk
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

IGNORE_INDEX = -100  # the label of a token that does not count, as in PyTorch


class LossTerms(NamedTuple):
    """The weights of what may be added to cross-entropy; 0 leaves a term out.

    A further term is a field here, its value in `training_objective`, and its value and gradient in
    `ChunkedCrossEntropy.forward`.
    """

    label_smoothing: float = 0.0
    """Share of each label's probability that is spread evenly over the vocabulary."""
    z_loss: float = 0.0
    """Weight of the square of the logarithm of the softmax's denominator."""


NO_TERMS = LossTerms()


def soft_cap(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    """Bend logits smoothly so that none is beyond `cap` (https://arxiv.org/abs/2408.00118); None changes nothing."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def training_objective(
    logits: torch.Tensor,  # N V
    labels: torch.Tensor,  # N, -100 where there is none
    terms: LossTerms,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the objective of training and plain cross-entropy, both summed over the tokens, in nats.

    The objective has `label_smoothing` of each label's probability spread evenly over the vocabulary
    (https://arxiv.org/abs/1512.00567), and `z_loss` times the square of the logarithm of the softmax's denominator
    added, which keeps logits from drifting away (https://arxiv.org/abs/2204.02311).
    """
    plain = F.cross_entropy(logits, labels, reduction="sum")
    if not any(terms):
        return plain, plain

    objective = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=terms.label_smoothing)
    log_sums = logits.logsumexp(dim=-1) * (labels != IGNORE_INDEX)  # N
    return objective + terms.z_loss * log_sums.square().sum(), plain


class ChunkedCrossEntropy(torch.autograd.Function):
    """`training_objective(hidden @ weight.T, labels, ...)` without ever holding the N x V logits.

    The forward pass goes over the tokens chunk by chunk and saves the finished gradients, N x D and V x D; the backward
    pass only scales them. On two CPU cores this takes 0.7 to 0.9 of plain cross-entropy's time and a sixth of
    its memory (2048x768x32768 in benchmarks/cross_entropy.py); computing each chunk again in the backward pass instead
    took 1.1 times plain's time.
    """

    @staticmethod
    def forward(
        ctx,
        hidden: torch.Tensor,  # N D
        weight: torch.Tensor,  # V D
        labels: torch.Tensor,  # N, -100 where there is none
        chunk: int,
        needs_gradient: bool,
        softcap: float | None = None,
        *weights: float,  # of LossTerms, apart: the compiler follows numbers
    ) -> tuple[torch.Tensor, torch.Tensor]:
        terms = LossTerms(*weights)
        label_smoothing = terms.label_smoothing
        z_loss = terms.z_loss
        matrix = weight.to(hidden.dtype)  # V D
        plain = torch.zeros((), dtype=torch.float32, device=hidden.device)
        added = torch.zeros_like(plain)  # what the objective has beside plain cross-entropy

        # Many chunks add up in the gradient of the weight, which needs float32; one in that of a token.
        grad_hidden = None
        grad_weight = None
        if needs_gradient and ctx.needs_input_grad[0]:
            grad_hidden = torch.empty_like(hidden)  # N D
        if needs_gradient and ctx.needs_input_grad[1]:
            grad_weight = torch.zeros_like(weight, dtype=torch.float32)  # V D

        for start in range(0, hidden.shape[0], chunk):
            rows = slice(start, start + chunk)
            tokens = hidden[rows]  # C D
            has_label = (labels[rows] != IGNORE_INDEX)[:, None]  # C 1
            target = labels[rows].clamp(min=0)[:, None]  # C 1

            # The loss
            logits = soft_cap(tokens @ matrix.T, softcap)  # C V
            log_probs = torch.log_softmax(logits, dim=-1, dtype=torch.float32)  # C V
            at_target = log_probs.gather(1, target)  # C 1
            plain -= (at_target * has_label).sum()
            if label_smoothing:
                uniform = log_probs.mean(dim=-1, keepdim=True)  # C 1
                added += label_smoothing * ((at_target - uniform) * has_label).sum()
            if z_loss:
                log_sum = logits.gather(1, target).float() - at_target  # C 1
                added += z_loss * (log_sum.square() * has_label).sum()
            if grad_hidden is None and grad_weight is None:
                continue

            # Its gradient by the logits: the probabilities, less one at the target
            grad_logits = log_probs.exp_()  # C V
            if z_loss:
                grad_logits.mul_(1 + 2 * z_loss * log_sum)
            if label_smoothing:
                grad_logits.sub_(label_smoothing / weight.shape[0])
            at_label = torch.full_like(target, label_smoothing - 1, dtype=torch.float32)  # C 1
            grad_logits.scatter_add_(1, target, at_label)
            if softcap is not None:
                grad_logits.mul_(1 - (logits / softcap).square())  # the slope of the tanh
            grad_logits = grad_logits.to(hidden.dtype)

            # And by the inputs of the head
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ matrix) * has_label
            if grad_weight is not None:
                add_product(grad_weight, grad_logits.T, tokens * has_label)

        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        ctx.unused_gradients = (None,) * (4 + len(weights))  # of labels to softcap, and of the terms
        ctx.mark_non_differentiable(plain)
        return plain + added, plain

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_total: torch.Tensor, _: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        grad_hidden, grad_weight = ctx.saved_tensors
        # In place: nothing else holds them, and a second backward pass through them fails loudly in autograd.
        if grad_hidden is not None:
            grad_hidden = grad_hidden.mul_(grad_total)
        if grad_weight is not None:
            grad_weight = grad_weight.mul_(grad_total).to(ctx.weight_dtype)
        return grad_hidden, grad_weight, *ctx.unused_gradients


@torch.compiler.disable
def uncompiled_cross_entropy(*arguments: torch.Tensor | float | bool | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply `ChunkedCrossEntropy` outside of the compiler, which would unroll the loop: two more seconds for each chunk
    on a CPU."""
    return ChunkedCrossEntropy.apply(*arguments)


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Do `total += left @ right`, without a temporary where the dtypes allow it."""
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


# Device type -> logits of a chunk: 2^23 fit in a CPU's last cache (32 MB of float32); a GPU needs more at a time to be
# busy (512 MB).
LOGITS_AT_ONCE = {"cpu": 2**23, "cuda": 2**27}
MAX_COMPILED_CHUNKS = 8


class HfLlmHead(nn.Linear):
    """Hidden states to logits; with labels, to the loss.

    The loss is computed inside this module, not from its weight outside, so that what gathers a sharded weight before a
    module runs (ZeRO-3, FSDP) gathers this one too.
    """

    softcap: float | None = None

    def forward(
        self,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None = None,
        terms: LossTerms = NO_TERMS,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Return logits, B T V, not capped yet; or with `labels` (B T, shifted already, -100 where there is none) what
        `training_objective` gives, float32: the objective, and plain cross-entropy without a gradient."""
        if labels is None:
            return super().forward(hidden_states)

        device_type = hidden_states.device.type
        is_autocast = torch.is_autocast_enabled(device_type)
        dtype = torch.get_autocast_dtype(device_type) if is_autocast else self.weight.dtype
        hidden = hidden_states.flatten(0, -2).to(dtype)  # N D
        labels = labels.flatten().to(hidden.device)  # N

        logits_at_once = LOGITS_AT_ONCE["cpu" if device_type == "cpu" else "cuda"]
        chunk = max(1, logits_at_once // self.out_features)
        cross_entropy: Callable[..., tuple[torch.Tensor, torch.Tensor]] = ChunkedCrossEntropy.apply
        if hidden.shape[0] > MAX_COMPILED_CHUNKS * chunk:
            # torch's decorator has no types.
            cross_entropy = uncompiled_cross_entropy  # pyright: ignore[reportAssignmentType]
        return cross_entropy(hidden, self.weight, labels, chunk, torch.is_grad_enabled(), self.softcap, *terms)
