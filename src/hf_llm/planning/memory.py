"""The memory of a training step, by part, without using any: the real model and optimizer run on tensors without data.

torch's FakeTensorMode gives the result of each operation its shape and no storage; here every storage is counted from
the operation that makes it until it is let go. So there is no formula of the activations to go stale: whatever the
model's code keeps for its backward pass is counted, for any `model_type`. torch has a tracker of this kind for its own
use, `torch.distributed._tools.MemTracker`, against which tests/planning/test_memory.py checks this one.
"""

import copy
import io
import math
import multiprocessing
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.initialization import no_init_weights
from transformers.training_args import OptimizerNames

from hf_llm.core.errors import UserError
from hf_llm.hardware.memory_counters import resident
from hf_llm.hardware.runtime import keep_freed_memory
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.cross_entropy import LOGITS_AT_ONCE
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.model.summary import DECODED, ENCODED
from hf_llm.planning.allocate_only_mode import Untouched
from hf_llm.training.optimizers import new_optimizer

WEIGHTS, COPIES, GRADIENTS, OPTIMIZER = "weights", "low-precision copies", "gradients", "optimizer"
ACTIVATIONS, LOSS, TEMPORARY = "activations", "logits and loss", "temporary"
PARTS = (WEIGHTS, COPIES, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOSS, TEMPORARY)
TRAINING, UPDATE = "forward and backward", "optimizer step"
# What a training on a CPU takes beyond its steps tried on untouched tensors: the mean of benchmarks/planning.py.
BEYOND = 0.06


@dataclass(frozen=True)
class Footprint:
    """Bytes by part at the highest moment of each phase of a step. Phases follow one another: they do not add up."""

    phases: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        """Bytes at the highest moment of the step."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part at that moment."""
        return max(self.phases.values(), key=lambda parts: sum(parts.values()))


class LiveStorages(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, each to a part, and remembers the highest moment.

    A storage belongs to the part that is `making` when it is made, until `count` says otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.making = WEIGHTS
        self.now: Counter[str] = Counter()
        self.highest: dict[str, int] = {}
        self._most = 0
        self._known: dict[int, list] = {}  # by the storage's id: reference, part, bytes

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))
        part = self.making
        if operation is torch.ops.aten._to_copy.default and self.part_of(args[0]) == WEIGHTS:
            part = COPIES
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._see(tensor.untyped_storage(), part)
        return result

    def part_of(self, tensor: torch.Tensor) -> str | None:
        """The part to which the storage of `tensor` is counted."""
        known = self._known.get(id(tensor.untyped_storage()))
        return known[1] if known else None

    def count(self, tensor: torch.Tensor, part: str) -> None:
        """Count the storage of `tensor` to `part` from now on."""
        self._see(tensor.untyped_storage(), part)
        known = self._known[id(tensor.untyped_storage())]
        self.now[known[1]] -= known[2]
        self.now[part] += known[2]
        known[1] = part

    def start(self, part: str) -> None:
        """Begin a phase: what is made now belongs to `part`, and the highest moment is the present one."""
        self.making, self.highest, self._most = part, dict(self.now), self.now.total()

    def _see(self, storage: torch.UntypedStorage, part: str) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self._known or not size:
            return
        self._known[key] = [weakref.ref(storage, lambda _: self._forget(key)), part, size]
        self.now[part] += size
        if self.now.total() > self._most:
            self._most, self.highest = self.now.total(), dict(self.now)

    def _forget(self, key: int) -> None:
        _, part, size = self._known.pop(key)
        self.now[part] -= size


def footprint(
    build: Callable[[], PreTrainedModel],
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
) -> Footprint:
    """What one step of training the model that `build` makes takes on a GPU, nothing sharded or compiled.

    `batch` windows of `context` tokens go forward and backward at a time, on top of the gradients of others where the
    step is to `accumulate`. Of the `arguments` the optimizer and activation checkpointing are obeyed; `autocast` is the
    type that the matrix products are made in.
    """
    with FakeTensorMode(), patch.dict(LOGITS_AT_ONCE, {"cpu": LOGITS_AT_ONCE["cuda"]}):
        return steps(build, batch, context, arguments, autocast, accumulate)


def extrapolated(
    build: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig, *more: Any, **by_name: Any
) -> Footprint:
    """`footprint` of the model of `config`; of a deep one by those of its first 2 and 4 layers, since each layer more
    takes the same."""
    layers = config.num_hidden_layers
    if layers <= 4:
        return footprint(lambda: build(config), *more, **by_name)
    low, high = (footprint(partial(build, with_layers(config, few)), *more, **by_name).phases for few in (2, 4))
    phases = {
        phase: {
            part: low[phase].get(part, 0) + (size - low[phase].get(part, 0)) * (layers - 2) // 2
            for part, size in high[phase].items()
        }
        for phase in high
    }
    return Footprint({phase: _ordered(parts) for phase, parts in phases.items()})


def with_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config of the same model with the first `layers` layers only."""
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    for key in ("num_decoder_layers", "decoder_layers"):
        if getattr(shallow, key, None):
            setattr(shallow, key, layers)
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = (shallow.layer_types * layers)[:layers]
    return shallow


def on_this_cpu(*of_footprint: Any, **by_name: Any) -> tuple[Footprint, int]:
    """`footprint` of a training on this machine's CPU, and by how many bytes its process grows for it: the holes in the
    C library's heap are in that, though not where the system is no Linux, which alone tells the size of a process, and
    a little (BEYOND) that real trainings have taken on top.

    Runs in a fork of this process, whose heap must be as a training's is at its start.
    """
    if sys.platform != "linux":
        with FakeTensorMode():
            found = steps(*of_footprint, **by_name)
        return found, found.peak
    found, growth = _forked(partial(_untouched_steps, *of_footprint, **by_name))
    return found, round(growth * (1 + BEYOND))


@cache
def trainer_size() -> int:
    """Bytes of this process once it has trained: Python, torch and all that Trainer imports, which a fork finds out."""
    return resident() + (_forked(_growth_by_a_toy) if sys.platform == "linux" else 0)


def _untouched_steps(*of_footprint: Any, **by_name: Any) -> tuple[Footprint, int]:
    keep_freed_memory()
    before = _status("VmSize")
    with Untouched():
        found = steps(*of_footprint, **by_name, count=3)
    return found, _status("VmPeak") - before


def _growth_by_a_toy() -> int:
    before = _status("VmRSS")
    config = HfLlmConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    row = torch.zeros(8, dtype=torch.long)
    quiet = {"report_to": "none", "disable_tqdm": True, "save_strategy": "no", "dataloader_pin_memory": False}
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        arguments = TrainingArguments(folder, max_steps=2, use_cpu=True, **quiet)
        rows = [{"input_ids": row, "labels": row}] * 16
        Trainer(HfLlmForCausalLM(config), arguments, train_dataset=rows).train()
    return _status("VmRSS") - before


def _forked(work: Callable[[], Any]) -> Any:
    """What `work` returns in a fork of this process. Raises RuntimeError where it fails there."""
    pipe, end = multiprocessing.get_context("fork").Pipe(duplex=False)

    def alone() -> None:
        torch.set_num_threads(1)  # the others of OpenMP's pool have not come along, and would be waited for
        end.send(work())

    child = multiprocessing.get_context("fork").Process(target=alone)
    child.start()
    end.close()
    try:
        return pipe.recv()
    except EOFError:
        raise RuntimeError("the process that tried a training step has failed; what it printed says why") from None
    finally:
        child.join()


def _status(key: str) -> int:
    """Bytes that Linux tells of this process, `VmPeak` of the time since it was forked (proc_pid_status(5))."""
    return int(re.search(key + r":\s+(\d+)", Path("/proc/self/status").read_text())[1]) * 1024


def steps(
    build: Callable[[], PreTrainedModel],
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
    count: int = 1,
) -> Footprint:
    """As `footprint`, on the tensors of whatever mode is on."""
    with LiveStorages() as storages:
        with no_init_weights():
            model = build().train()
        model.tie_weights()  # which belongs to the initialisation
        if arguments.activation_checkpointing:
            model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
        if (head := model.get_output_embeddings()) is not None:
            head.register_forward_pre_hook(lambda *_: setattr(storages, "making", LOSS))
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for parameter in trained:
            parameter.register_post_accumulate_grad_hook(lambda p: storages.count(p.grad, GRADIENTS))
        optimizer = new_optimizer(arguments, model)
        for parameter in trained if accumulate and count == 1 else ():  # what micro-batches before have left
            parameter.grad = torch.empty_like(parameter)
            storages.count(parameter.grad, GRADIENTS)
        for step in range(count):
            for _ in range(2 if accumulate and count > 1 else 1):
                training = _forward_and_backward(storages, model, batch, context, autocast)
            storages.start(TEMPORARY)
            if arguments.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
            storages.making = OPTIMIZER if step == 0 else TEMPORARY  # the first step makes the states
            try:
                optimizer.step()
            except DataDependentOutputException:
                name = OptimizerNames(arguments.optim).value
                raise UserError(
                    f"training.optim: what {name} takes is not known before it runs; plan with adamw_torch_fused, "
                    "which keeps 8 bytes for each parameter (docs/optimizers.md has the others')"
                ) from None
            if step == 0:
                states = storages.now[OPTIMIZER]
            update = _settled(storages.highest, states)
            optimizer.zero_grad()
    # The states are there from the second step on, also while the model goes forward and backward.
    return Footprint({TRAINING: _ordered({**training, OPTIMIZER: states}), UPDATE: _ordered(update)})


def _settled(parts: dict[str, int], states: int) -> dict[str, int]:
    """What the first optimizer step has made on the way to the states is temporary."""
    passing = parts.get(OPTIMIZER, 0) - states
    return {**parts, OPTIMIZER: states, TEMPORARY: parts.get(TEMPORARY, 0) + passing}


def _forward_and_backward(
    storages: LiveStorages, model: PreTrainedModel, batch: int, context: int, autocast: torch.dtype | None
) -> dict[str, int]:
    """Bytes by part at the highest moment."""
    tokens = torch.zeros(batch, context, dtype=torch.long)
    storages.start(ACTIVATIONS)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        loss = model(**model_inputs(model.config, tokens)).loss
    storages.making = TEMPORARY
    loss.backward()
    return storages.highest


def model_inputs(config: PreTrainedConfig, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a model goes through for windows of `tokens` (B T): an encoder-decoder as much as T5's span corruption
    leaves of them, and takes out."""
    if not config.is_encoder_decoder:
        return {"input_ids": tokens, "labels": tokens.clone()}
    encoded, decoded = (math.ceil(share * tokens.shape[1]) for share in (ENCODED, DECODED))
    return {"input_ids": tokens[:, :encoded], "labels": tokens[:, :decoded].clone()}


def _ordered(parts: dict[str, int]) -> dict[str, int]:
    return {part: parts[part] for part in PARTS if parts.get(part)}
