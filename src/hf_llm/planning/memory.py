"""Estimate the memory of a training step by part (weights, gradients, activations ...), without allocating it.

The real model and optimizer run on tensors without data: torch's FakeTensorMode gives the result of each operation a
shape and no memory. `LiveStorages` counts the bytes of every storage from the operation that makes it until it is
released. So no formula for activations is needed: whatever the model's code keeps for its backward pass is counted, for
any `model_type`. torch has a tracker of this kind for its own use, `torch.distributed._tools.MemTracker`, against which
tests/planning/test_memory.py checks this one.
"""

import copy
import io
import multiprocessing
import re
import sys
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedConfig, PreTrainedModel, Trainer, TrainingArguments
from transformers.initialization import no_init_weights
from transformers.training_args import OptimizerNames

from hf_llm.core.errors import UserError
from hf_llm.hardware.memory_counters import resident_bytes
from hf_llm.hardware.runtime import keep_freed_memory
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.cross_entropy import LOGITS_AT_ONCE
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.planning.allocate_only_mode import AllocateOnlyMode
from hf_llm.training.optimizers import build_optimizer
from hf_llm.training.step_timing import build_model_inputs

# The parts of a footprint, in the order in which a plan shows them.
WEIGHTS = "weights"
COPIES = "low-precision copies"
GRADIENTS = "gradients"
OPTIMIZER = "optimizer"
ACTIVATIONS = "activations"
LOSS = "logits and loss"
TEMPORARY = "temporary"
PARTS = (WEIGHTS, COPIES, GRADIENTS, OPTIMIZER, ACTIVATIONS, LOSS, TEMPORARY)

# The phases of a step.
TRAINING = "forward and backward"
UPDATE = "optimizer step"

# A real training on a CPU takes this share more than steps tried in AllocateOnlyMode: the mean of
# benchmarks/planning.py.
CPU_MEMORY_MARGIN = 0.06


@dataclass(frozen=True)
class Footprint:
    """Bytes by part at the peak of each phase of a step. Phases follow one another: they do not add up."""

    phases: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        """Bytes at the peak of the step."""
        return sum(self.parts.values())

    @property
    def parts(self) -> dict[str, int]:
        """Bytes by part at the peak of the step."""
        return max(self.phases.values(), key=lambda parts: sum(parts.values()))


@dataclass(slots=True)
class _CountedStorage:
    """A live storage, and the part of the footprint that its bytes are counted to."""

    reference: weakref.ref
    part: str
    size: int


class LiveStorages(TorchDispatchMode):
    """Count the bytes of all live storages by part, and remember the peak.

    A storage is counted to `part_of_new_storages` when it is made, until `assign_part` says otherwise.
    """

    def __init__(self) -> None:
        super().__init__()
        self.part_of_new_storages = WEIGHTS
        self.live_bytes: Counter[str] = Counter()
        self.peak_parts: dict[str, int] = {}
        self._peak_bytes = 0
        self._storages: dict[int, _CountedStorage] = {}  # `id` of a storage -> what is known of it

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = operation(*args, **(kwargs or {}))

        # Autocast makes its low-precision copies of the weights by this operation.
        part = self.part_of_new_storages
        if operation is torch.ops.aten._to_copy.default and self.get_part(args[0]) == WEIGHTS:
            part = COPIES

        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self._count_storage(tensor.untyped_storage(), part)
        return result

    def get_part(self, tensor: torch.Tensor) -> str | None:
        """Return the part that the storage of `tensor` is counted to, None for a storage not counted."""
        storage = self._storages.get(id(tensor.untyped_storage()))
        return storage.part if storage else None

    def assign_part(self, tensor: torch.Tensor, part: str) -> None:
        """Count the storage of `tensor` to `part` from now on."""
        self._count_storage(tensor.untyped_storage(), part)
        storage = self._storages[id(tensor.untyped_storage())]

        self.live_bytes[storage.part] -= storage.size
        self.live_bytes[part] += storage.size
        storage.part = part

    def start_phase(self, part: str) -> None:
        """Begin a phase: new storages are counted to `part`, and the peak is the present moment."""
        self.part_of_new_storages = part
        self.peak_parts = dict(self.live_bytes)
        self._peak_bytes = self.live_bytes.total()

    def _count_storage(self, storage: torch.UntypedStorage, part: str) -> None:
        key = id(storage)
        size = storage.nbytes()
        if key in self._storages or not size:
            return

        reference = weakref.ref(storage, lambda _: self._release_storage(key))
        self._storages[key] = _CountedStorage(reference, part, size)
        self.live_bytes[part] += size
        if self.live_bytes.total() > self._peak_bytes:
            self._peak_bytes = self.live_bytes.total()
            self.peak_parts = dict(self.live_bytes)

    def _release_storage(self, key: int) -> None:
        storage = self._storages.pop(key)
        self.live_bytes[storage.part] -= storage.size


def trace_footprint(
    build: Callable[[], PreTrainedModel],
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
) -> Footprint:
    """Trace the footprint of one training step on a GPU, without sharding or compilation.

    `build` makes the model. A micro-batch is `batch` windows of `context` tokens; with `accumulate` the gradients of
    earlier micro-batches are in memory already. The optimizer and activation checkpointing follow `arguments`;
    `autocast` is the type of the matrix products.
    """
    with FakeTensorMode(), _chunk_logits_as_on_gpu():
        return trace_steps(build, batch, context, arguments, autocast, accumulate)


@contextmanager
def _chunk_logits_as_on_gpu() -> Iterator[None]:
    """Let the loss work on as many logits at once as on a GPU, though the tensors are on the CPU.

    Tensors without data count as CPU tensors, and the loss chooses the size of its chunks by their device.
    """
    logits_on_cpu = LOGITS_AT_ONCE["cpu"]
    LOGITS_AT_ONCE["cpu"] = LOGITS_AT_ONCE["cuda"]
    try:
        yield
    finally:
        LOGITS_AT_ONCE["cpu"] = logits_on_cpu


def extrapolate_footprint(
    build: Callable[[PreTrainedConfig], PreTrainedModel],
    config: PreTrainedConfig,
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
) -> Footprint:
    """Return `trace_footprint` of the model of `config`.

    For a deep model, models of 2 and 4 layers are traced instead, and the size of the whole is extrapolated, where each
    further layer takes the same. A model whose layers differ, or share weights, is traced as it is.
    """
    step_arguments = (batch, context, arguments, autocast, accumulate)
    layers = config.num_hidden_layers
    if layers <= 4 or not has_equal_layers(build, config):
        return trace_footprint(partial(build, config), *step_arguments)

    build_two_layers = partial(build, truncate_layers(config, 2))
    build_four_layers = partial(build, truncate_layers(config, 4))
    two_layers = trace_footprint(build_two_layers, *step_arguments)
    four_layers = trace_footprint(build_four_layers, *step_arguments)

    phases = {}
    for phase, parts_of_four in four_layers.phases.items():
        parts_of_two = two_layers.phases[phase]
        parts = {}
        for part, size_of_four in parts_of_four.items():
            size_of_two = parts_of_two.get(part, 0)
            difference = size_of_four - size_of_two
            parts[part] = size_of_two + difference * (layers - 2) // 2
        phases[phase] = _sort_parts(parts)
    return Footprint(phases)


def has_equal_layers(build: Callable[[PreTrainedConfig], PreTrainedModel], config: PreTrainedConfig) -> bool:
    """Whether each layer after the fourth takes what the third and fourth take: its own weights, as many, of a kind."""
    if getattr(config, "num_hidden_groups", None):  # ALBERT's layers share the weights of their group
        return False
    for key in ("layer_types", "layers_block_type", "block_types"):
        kinds = getattr(config, key, None)
        if kinds and any(kinds[i] != kinds[2 + i % 2] for i in range(4, len(kinds))):
            return False

    with torch.device("meta"):
        models = [build(truncate_layers(config, 2)), build(truncate_layers(config, 4)), build(config)]
    two, four, whole = (sum(parameter.numel() for parameter in model.parameters()) for model in models)
    return whole == two + (four - two) * (config.num_hidden_layers - 2) // 2


def truncate_layers(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """Return the config of the same model with the first `layers` layers only."""
    shallow = copy.deepcopy(config)
    shallow.num_hidden_layers = layers
    for key in ("num_decoder_layers", "decoder_layers"):
        if getattr(shallow, key, None):
            setattr(shallow, key, layers)
    if getattr(shallow, "layer_types", None):
        shallow.layer_types = (shallow.layer_types * layers)[:layers]
    return shallow


def estimate_cpu_footprint(
    build: Callable[[], PreTrainedModel],
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
) -> tuple[Footprint, int]:
    """Estimate the footprint of a training on this host's CPU, and by how many bytes its process grows.

    The growth is larger than the footprint's peak: it includes what the C library's heap loses between blocks, and
    CPU_MEMORY_MARGIN. To measure it, the steps run in a fork of this process, so this process's heap must be in the
    state in which a training starts. Where no fork can be measured (on any platform but Linux), the growth is the
    footprint's peak.
    """
    step_arguments = (build, batch, context, arguments, autocast, accumulate)
    if not can_measure_fork():
        with FakeTensorMode():
            footprint = trace_steps(*step_arguments)
        return footprint, footprint.peak

    footprint, growth = run_in_fork(partial(_allocate_steps, *step_arguments))
    return footprint, round(growth * (1 + CPU_MEMORY_MARGIN))


@cache
def trained_process_bytes() -> int:
    """Measure the bytes of this process once it has trained: Python, torch and all that Trainer imports.

    A fork trains a toy model for that. Where no fork can be measured, these are the bytes of this process as it is.
    """
    present_bytes = resident_bytes()
    if not can_measure_fork():
        return present_bytes
    return present_bytes + run_in_fork(_train_toy_model)


def _allocate_steps(*step_arguments: Any) -> tuple[Footprint, int]:
    """Trace steps in AllocateOnlyMode; return their footprint, and by how many bytes this process grew at its peak."""
    keep_freed_memory()
    bytes_before = _read_process_status("VmSize")
    with AllocateOnlyMode():
        footprint = trace_steps(*step_arguments, count=3)
    return footprint, _read_process_status("VmPeak") - bytes_before


def _train_toy_model() -> int:
    """Train a model of a few numbers, and return by how many bytes this process has grown."""
    bytes_before = _read_process_status("VmRSS")

    config = HfLlmConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=1
    )
    tokens = torch.zeros(8, dtype=torch.long)
    examples = [{"input_ids": tokens, "labels": tokens}] * 16
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        arguments = TrainingArguments(
            folder,
            max_steps=2,
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
            save_strategy="no",
            dataloader_pin_memory=False,
        )
        Trainer(HfLlmForCausalLM(config), arguments, train_dataset=examples).train()

    return _read_process_status("VmRSS") - bytes_before


def can_measure_fork() -> bool:
    """Whether this platform can fork a process and reports its memory in /proc: only Linux does both."""
    return sys.platform == "linux" and "fork" in multiprocessing.get_all_start_methods()


def run_in_fork(work: Callable[[], Any], threads: int | None = 1) -> Any:
    """Return what `work` returns in a fork of this process.

    It has one thread, unless this process has computed nothing yet: then `threads` may be None, for all.
    Raises RuntimeError where it fails there. To be called only where `can_measure_fork`.
    """
    assert can_measure_fork()
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def send_result() -> None:
        # The other threads of OpenMP's pool are not in the fork, and would be waited for.
        if threads is not None:
            torch.set_num_threads(threads)
        sender.send(work())

    child = context.Process(target=send_result)
    child.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        raise RuntimeError("the process that tried a training step failed; its output above says why") from None
    finally:
        child.join()


def _read_process_status(key: str) -> int:
    """Read a size of this process from Linux, in bytes (proc_pid_status(5)): `VmPeak` is the peak since its fork."""
    status = Path("/proc/self/status").read_text()
    kibibytes = re.search(key + r":\s+(\d+)", status)[1]
    return int(kibibytes) * 1024


def trace_steps(
    build: Callable[[], PreTrainedModel],
    batch: int,
    context: int,
    arguments: TrainingArguments,
    autocast: torch.dtype | None = None,
    accumulate: bool = False,
    count: int = 1,
) -> Footprint:
    """Trace `count` steps in the present tensor mode; the other arguments are those of `trace_footprint`.

    Raises UserError for an optimizer that cannot run on tensors without data.
    """
    with LiveStorages() as storages:
        model = _build_for_training(build, arguments)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        _register_part_hooks(storages, model, trained)
        optimizer = build_optimizer(arguments, model)

        # A single step that accumulates begins with the gradients of the micro-batches before it.
        if accumulate and count == 1:
            for parameter in trained:
                parameter.grad = torch.empty_like(parameter)
                storages.assign_part(parameter.grad, GRADIENTS)
        micro_batches = 2 if accumulate and count > 1 else 1

        for step in range(count):
            for _ in range(micro_batches):
                training_parts = _run_forward_and_backward(storages, model, batch, context, autocast)

            storages.start_phase(TEMPORARY)
            if arguments.max_grad_norm:
                torch.nn.utils.clip_grad_norm_(trained, arguments.max_grad_norm)
            # The first step makes the optimizer's states.
            storages.part_of_new_storages = OPTIMIZER if step == 0 else TEMPORARY
            _run_optimizer_step(optimizer, arguments)
            if step == 0:
                state_bytes = storages.live_bytes[OPTIMIZER]
            update_parts = _separate_temporary_bytes(storages.peak_parts, state_bytes)
            optimizer.zero_grad()

    # The states exist from the second step on, also while the model goes forward and backward.
    training_parts = {**training_parts, OPTIMIZER: state_bytes}
    return Footprint({TRAINING: _sort_parts(training_parts), UPDATE: _sort_parts(update_parts)})


def _build_for_training(build: Callable[[], PreTrainedModel], arguments: TrainingArguments) -> PreTrainedModel:
    with no_init_weights():
        model = build().train()
    model.tie_weights()  # a part of the initialisation
    if arguments.activation_checkpointing:
        model.activation_checkpointing_enable(arguments.activation_checkpointing_kwargs)
    return model


def _register_part_hooks(storages: LiveStorages, model: PreTrainedModel, trained: list[torch.nn.Parameter]) -> None:
    """Count storages made from the model's head onwards to the loss, and accumulated gradients to the gradients."""

    def start_loss(*_: Any) -> None:
        storages.part_of_new_storages = LOSS

    def assign_gradient(parameter: torch.nn.Parameter) -> None:
        storages.assign_part(parameter.grad, GRADIENTS)

    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(start_loss)
    for parameter in trained:
        parameter.register_post_accumulate_grad_hook(assign_gradient)


def _run_forward_and_backward(
    storages: LiveStorages, model: PreTrainedModel, batch: int, context: int, autocast: torch.dtype | None
) -> dict[str, int]:
    """Run one micro-batch, and return the bytes by part at its peak."""
    tokens = torch.zeros(batch, context, dtype=torch.long)
    storages.start_phase(ACTIVATIONS)
    with torch.autocast("cpu", autocast) if autocast else nullcontext():
        loss = model(**build_model_inputs(model.config, tokens)).loss
    storages.part_of_new_storages = TEMPORARY
    loss.backward()
    return storages.peak_parts


def _run_optimizer_step(optimizer: Optimizer, arguments: TrainingArguments) -> None:
    try:
        optimizer.step()
    except DataDependentOutputException:
        name = OptimizerNames(arguments.optim).value
        raise UserError(
            f"training.optim: the memory of {name} is not known before it runs; plan with adamw_torch_fused, "
            "which keeps 8 bytes for each parameter (docs/optimizers.md lists the others)"
        ) from None


def _separate_temporary_bytes(parts: dict[str, int], state_bytes: int) -> dict[str, int]:
    """Count what the first optimizer step allocated and released again as temporary, not as optimizer states."""
    released_bytes = parts.get(OPTIMIZER, 0) - state_bytes
    return {**parts, OPTIMIZER: state_bytes, TEMPORARY: parts.get(TEMPORARY, 0) + released_bytes}


def _sort_parts(parts: dict[str, int]) -> dict[str, int]:
    """Return the parts that hold anything, in the order of PARTS."""
    return {part: parts[part] for part in PARTS if parts.get(part)}
