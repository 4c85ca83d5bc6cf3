"""Time passes and updates of a model on random tokens, on the device that Trainer uses.

What is chosen for a step (`hf_llm.training.step_choice`) and what is said of a training's time rest on these figures.
"""

import math
import time

import torch
from transformers import PreTrainedConfig, PreTrainedModel, TrainingArguments

from hf_llm.hardware.microbenchmarks import synchronize_device
from hf_llm.hardware.runtime import device_type
from hf_llm.model.summary import DECODER_SHARE, ENCODER_SHARE
from hf_llm.training.optimizers import build_optimizer


class TimedModel:
    """A model that is trained on random tokens, pass by pass. Its weights change: give it a copy."""

    def __init__(self, model: PreTrainedModel, arguments: TrainingArguments | None = None):
        """`arguments` say which optimizer makes the updates; without them none can be run."""
        self.device = torch.device(device_type())
        self.model = model.to(self.device).train()
        self.trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.parameter_count = sum(parameter.numel() for parameter in self.trained)
        self.optimizer = None
        if arguments is not None:
            if arguments.activation_checkpointing:
                model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
            self.optimizer = build_optimizer(arguments, model)
        self._tokens: dict[tuple[int, int], torch.Tensor] = {}

    def run_pass(self, windows: int, context: int, autocast: torch.dtype | None) -> float:
        """Return the seconds of forward and backward of `windows` windows of `context` tokens."""
        tokens = self._make_tokens(windows, context)
        started = self._read_clock()
        with torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            loss = self._compute_loss(tokens)
        loss.backward()
        return self._read_clock() - started

    def run_forward(self, windows: int, context: int, autocast: torch.dtype | None) -> float:
        """Return the seconds of a forward pass alone, as in an evaluation."""
        tokens = self._make_tokens(windows, context)
        started = self._read_clock()
        with torch.no_grad(), torch.autocast(self.device.type, autocast, enabled=autocast is not None):
            self._compute_loss(tokens)
        return self._read_clock() - started

    def run_update(self) -> float:
        """Return the seconds of the optimizer's step with the clipping before it. A pass must have been run."""
        assert self.optimizer is not None
        started = self._read_clock()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self._read_clock() - started

    def _compute_loss(self, tokens: torch.Tensor) -> torch.Tensor:
        if type(self.model).__name__.endswith("ForSequenceClassification"):
            return self.model(input_ids=tokens).logits.float().mean()
        return self.model(**build_model_inputs(self.model.config, tokens)).loss

    def _make_tokens(self, windows: int, context: int) -> torch.Tensor:
        """Return (windows, context) random tokens, the same at each call, leaving torch's own random state alone."""
        shape = (windows, context)
        if shape not in self._tokens:
            generator = torch.Generator().manual_seed(0)
            tokens = torch.randint(0, self.model.config.vocab_size, shape, generator=generator)
            self._tokens[shape] = tokens.to(self.device)
        return self._tokens[shape]

    def _read_clock(self) -> float:
        synchronize_device(self.device)
        return time.perf_counter()


def build_model_inputs(config: PreTrainedConfig, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the inputs with which a model trains on windows of `tokens` (B T).

    For an encoder-decoder the lengths are those of T5's span corruption: the encoder reads the tokens that are left of
    a window, the decoder predicts those taken out.
    """
    if not config.is_encoder_decoder:
        return {"input_ids": tokens, "labels": tokens.clone()}

    encoded = math.ceil(ENCODER_SHARE * tokens.shape[1])
    decoded = math.ceil(DECODER_SHARE * tokens.shape[1])
    return {"input_ids": tokens[:, :encoded], "labels": tokens[:, :decoded].clone()}
