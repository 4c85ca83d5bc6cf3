"""Tiny trainings in processes of their own, and the faults that befall them.

The processes are forked from a server that has imported everything once, so one costs about half a second. A fault is a
function of the Trainer, called before the training begins: `run(folder, partial(kill_in_step, step=7))`.
"""

import gc
import hashlib
import json
import math
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainerState, TrainingArguments

from hf_llm.core.distributed import init_cpu_process_group
from hf_llm.core.errors import command
from hf_llm.training.fault_tolerance.resume import train_with_guards

SERVER = "tests.training.fault_tolerance.fault_server"
STEPS, EVERY = 12, 4  # optimizer steps of a run, and between its checkpoints
Fault = Callable[[Trainer], None]


class Sequences(Dataset):
    """60 sequences of 16 token ids, a function of the index alone; `read` counts the items asked for."""

    read = 0

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        Sequences.read += 1
        ids = torch.randint(0, 64, (16,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": ids, "labels": ids}


def tiny_model() -> LlamaForCausalLM:
    """A Llama of 5,000 parameters with dropout, the same each time."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        attention_dropout=0.1,
    )
    return LlamaForCausalLM(config)


def tiny_trainer(folder: Path, **changes: Any) -> Trainer:
    """A plain Trainer: accumulation, two epochs (with an odd rest), the loss logged every other step."""
    settings = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "save_steps": EVERY,
        "logging_steps": 2,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "use_cpu": True,
        "disable_tqdm": True,
        "report_to": "none",
        "dataloader_pin_memory": False,
        "ddp_find_unused_parameters": False,
        "logging_nan_inf_filter": False,
        **changes,
    }
    data = Sequences()
    return Trainer(tiny_model(), TrainingArguments(**settings), train_dataset=data, eval_dataset=data)


@dataclass
class Ended:
    """How the processes of a run ended: exit codes (negative: the signal), what they printed, and their outcome."""

    codes: list[int]
    output: str
    outcome: dict[str, Any] | None

    @property
    def code(self) -> int:
        """The exit code of the only process, or of the first."""
        return self.codes[0]


class Started:
    """A run under way."""

    def __init__(
        self, folder: Path, faults: tuple[Fault, ...], processes: int, changes: dict[str, Any], context: Any = None
    ):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.outcome.unlink(missing_ok=True)
        variables, changes = changes.get("variables", {}), {**changes, "variables": None}
        port = free_port() if processes > 1 else 0
        self.processes = [
            (context or forks()).Process(
                target=child, args=(self.folder, self.log, faults, changes, variables, rank, processes, port)
            )
            for rank in range(processes)
        ]
        for process in self.processes:
            process.start()

    @property
    def outcome(self) -> Path:
        return self.folder.with_name(self.folder.name + ".outcome.json")

    @property
    def log(self) -> Path:
        return self.folder.with_name(self.folder.name + ".log")

    def printed(self) -> str:
        """All that the processes have printed so far."""
        return self.log.read_text() if self.log.exists() else ""

    def wait_for(self, text: str, seconds: float = 30) -> None:
        """Return when the processes have printed `text`."""
        end = time.monotonic() + seconds
        while text not in self.printed():
            assert time.monotonic() < end, f"no {text!r} in:\n{self.printed()}"
            time.sleep(0.02)

    def wait_for_file(self, path: Path, seconds: float = 60) -> None:
        """Return when `path` is there."""
        end = time.monotonic() + seconds
        while not path.exists():
            assert time.monotonic() < end, f"no {path} after:\n{self.printed()}"
            time.sleep(0.02)

    def end(self, seconds: float = 60) -> Ended:
        """Wait for every process; those that run longer than `seconds` are killed and fail the test."""
        end = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0, end - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.is_alive()]
        for rank in late:
            self.processes[rank].kill()
        assert not late, f"ranks {late} still ran after {seconds} s:\n{self.printed()}"
        outcome = json.loads(self.outcome.read_text()) if self.outcome.exists() else None
        return Ended([process.exitcode for process in self.processes], self.printed(), outcome)


def start(folder: Path, *faults: Fault, processes: int = 1, **changes: Any) -> Started:
    """Start `processes` processes (gloo, where there are several) that train together into `folder`."""
    Path(folder).with_name(Path(folder).name + ".log").unlink(missing_ok=True)
    return Started(folder, faults, processes, changes)


def launch(folder: Path, *faults: Fault, processes: int = 1, **changes: Any) -> multiprocessing.process.BaseProcess:
    """Start a process that starts the others and watches over them as torchrun does; it adds to the log."""
    started = forks().Process(target=launcher, args=(Path(folder), faults, processes, changes))
    started.start()
    return started


def launcher(folder: Path, faults: tuple[Fault, ...], processes: int, changes: dict[str, Any]) -> None:
    """Start the ranks, pass a signal on to them, and end them all where one of them fails; exit code 1 then, as any."""
    ranks = Started(folder, faults, processes, changes, multiprocessing.get_context("fork")).processes
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: [rank.terminate() for rank in ranks])
    while all(rank.exitcode in (None, 0) for rank in ranks) and any(rank.is_alive() for rank in ranks):
        time.sleep(0.02)
    failed = any(rank.exitcode for rank in ranks)
    for rank in ranks:
        if failed:
            rank.terminate()
            rank.join(5)
            rank.kill()
        rank.join(60)
    os._exit(int(failed))


def run(folder: Path, *faults: Fault, processes: int = 1, **changes: Any) -> Ended:
    """Train into `folder` under `faults` and wait for the end.

    `changes` are those of TrainingArguments, `fingerprint`, `keep`, `spikes` and `terms` of `train_with_guards`,
    environment `variables`, and `build`, which makes another trainer than `tiny_trainer`.
    """
    return start(folder, *faults, processes=processes, **changes).end()


def forks() -> Any:
    """The server that processes are forked from, this module imported."""
    here = str(Path(__file__).parents[3])
    os.environ["OMP_NUM_THREADS"] = "1"
    if here not in os.environ.get("PYTHONPATH", ""):  # the server does not take over sys.path
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([SERVER])
    return context


def free_port() -> int:
    """A TCP port nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def child(
    folder: Path,
    log: Path,
    faults: tuple[Fault, ...],
    changes: dict[str, Any],
    variables: dict[str, str],
    rank: int,
    processes: int,
    port: int,
) -> None:
    """What each process does: its output to `log`, the training, the outcome of rank 0 written beside the folder."""
    assert SERVER in sys.modules, "multiprocessing has one fork server, and it was started with other imports"
    gc.freeze()  # Trainer collects garbage before it trains: half a second over all that was imported
    os.environ.update(variables)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    torch.set_num_threads(1)
    if processes > 1:
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
        init_cpu_process_group(changes.get("ddp_timeout", 20))
    try:
        command(partial(_train, folder, faults, changes))()
    finally:
        if "wandb" in sys.modules:
            sys.modules["wandb"].finish()  # as a program does at its exit; multiprocessing calls no exit functions


def _train(folder: Path, faults: tuple[Fault, ...], changes: dict, argv: list[str] | None) -> None:
    changes = {key: value for key, value in changes.items() if key != "variables"}
    fingerprint, keep = changes.pop("fingerprint", {"data": "a"}), changes.pop("keep", 2)
    spikes = changes.pop("spikes", None)
    terms = changes.pop("terms", None)
    trainer = changes.pop("build", tiny_trainer)(folder, **changes)
    for fault in faults:
        fault(trainer)
    train_with_guards(trainer, fingerprint=fingerprint, keep=keep, spikes=spikes, terms=terms)
    if os.environ.get("RANK", "0") == "0":
        outcome = {"weights": digest(trainer.model), "history": history(trainer.state), "read": Sequences.read}
        folder.with_name(folder.name + ".outcome.json").write_text(json.dumps(outcome))


def digest(model: torch.nn.Module) -> str:
    """sha256 of a model's tensors, names and bytes; of this process's part where they are sharded."""
    state = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        state.update(name.encode() + tensor.contiguous().numpy().tobytes())
    return state.hexdigest()


def history(state: TrainerState) -> list[list]:
    """Step, loss and gradient norm of each log entry, exactly."""
    return [
        [entry["step"], entry["loss"].hex(), entry["grad_norm"].hex()] for entry in state.log_history if "loss" in entry
    ]


class At(TrainerCallback):
    """Calls `act` when step `step` (from 1) begins, in the process `rank` (all, where None)."""

    def __init__(self, step: int, act: Callable[[], None], event: str = "on_step_begin", rank: int | None = None):
        self.step, self.act, self.rank = step, act, rank
        setattr(self, event, self._check)

    def _check(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        if state.global_step + 1 == self.step and self.rank in (None, args.process_index):
            self.act()


def kill() -> None:
    """End this process with no chance to clean up."""
    os.kill(os.getpid(), signal.SIGKILL)


def kill_in_step(trainer: Trainer, step: int, rank: int | None = None) -> None:
    """kill -9 in `step`, the gradients computed and the optimizer not yet called."""
    trainer.add_callback(At(step, kill, "on_pre_optimizer_step", rank))


def signal_in_step(
    trainer: Trainer, step: int, number: int = signal.SIGTERM, rank: int | None = None, after: float = 0
) -> None:
    """Send this process `number` when `step` begins, or `after` seconds later."""
    send = partial(os.kill, os.getpid(), number)
    act = send if not after else lambda: threading.Timer(after, send).start()
    trainer.add_callback(At(step, act, rank=rank))


def own_group(trainer: Trainer) -> None:
    """Let this process and its children (data workers) be a process group, to be signalled together."""
    os.setpgid(0, 0)


def hang_in_step(trainer: Trainer, step: int, rank: int | None = None) -> None:
    """Do nothing for ever when `step` begins; every step before is told of at once."""
    from hf_llm.pipeline import status

    status.HEARTBEAT_SECONDS = 0
    trainer.add_callback(At(step, partial(time.sleep, 3600), rank=rank))


def slow_steps(trainer: Trainer, seconds: float) -> None:
    """Make every step last `seconds` longer, and say that it has begun."""

    class Slow(TrainerCallback):
        def on_step_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
            print(f"begun {state.global_step + 1}", flush=True)
            time.sleep(seconds)

    trainer.add_callback(Slow())


def nan_loss(trainer: Trainer, steps: list[int], rank: int | None = None, by: float = math.nan) -> None:
    """Multiply the loss of these steps, gradients and all, in process `rank` (all, where None)."""
    compute = trainer.compute_loss

    @wraps(compute)
    def computed(*args: Any, **kwargs: Any) -> torch.Tensor:
        loss = compute(*args, **kwargs)
        here = trainer.state.global_step + 1 in steps and rank in (None, trainer.args.process_index)
        return loss * by if here and not kwargs.get("return_outputs") else loss

    trainer.compute_loss = computed


def scaled_loss(trainer: Trainer, step: int, by: float, rank: int | None = None) -> None:
    """Make the loss of `step` so many times as large, gradients and all, in process `rank` (all, where None)."""
    nan_loss(trainer, [step], rank, by)


def infinite_gradient(trainer: Trainer, step: int) -> None:
    """Put one infinity into one gradient of `step`, after clipping; the loss stays as it is."""

    class Infinite(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
            if state.global_step + 1 == step:
                next(trainer.model.parameters()).grad.view(-1)[3] = float("inf")

    trainer.add_callback(Infinite())


def poisoned_weight(trainer: Trainer, step: int) -> None:
    """Make one weight NaN at the end of `step`, as no finite gradient can."""

    class Poison(TrainerCallback):
        def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
            if state.global_step == step:
                trainer.model.lm_head.weight.data[0, 0] = float("nan")

    trainer.add_callback(Poison())


def kill_in_save(trainer: Trainer, step: int, file: str, when: str = "amid") -> None:
    """kill -9 in the save of `step`: `before` `file` is written, `amid` it (cut to half), or `after`."""
    target = Path(trainer.args.output_dir) / f"checkpoint-{step}" / file

    def guard(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def guarded(*args: Any, **kwargs: Any) -> Any:
            if when == "before" and str(target) in map(str, args):
                kill()
            result = original(*args, **kwargs)
            if when != "before" and target.exists():
                if when == "amid":
                    os.truncate(target, target.stat().st_size // 2)
                kill()
            return result

        setattr(owner, name, guarded)

    import transformers.modeling_utils

    guard(torch, "save")
    guard(transformers.modeling_utils, "safe_save_file")
    guard(TrainerState, "save_to_json")
    guard(os, "fsync")
    guard(os, "replace")


def kill_in_rotation(trainer: Trainer, files: int) -> None:
    """kill -9 when the rotation has deleted `files` files of the oldest checkpoint (its manifest is the first)."""
    unlink, deleted = os.unlink, []

    def counted(path: Any, *args: Any, **kwargs: Any) -> None:
        unlink(path, *args, **kwargs)
        if "dir_fd" in kwargs:  # as shutil.rmtree deletes; a lock is deleted otherwise
            deleted.append(path)
        if len(deleted) == files:
            kill()

    os.unlink = counted


def largest_file(trainer: Trainer, step: int, size: int) -> None:
    """Let the operating system refuse to make a file larger than `size` bytes from `step` on."""
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    trainer.add_callback(At(step, limit))


def fill_disk_in_save(trainer: Trainer, step: int, leave: int) -> None:
    """Fill the disk of the output folder up to `leave` bytes when the save of `step` has begun."""
    save = trainer._save_checkpoint

    def filled(*args: Any, **kwargs: Any) -> None:
        if trainer.state.global_step == step:
            fill_disk(Path(trainer.args.output_dir), leave)
        save(*args, **kwargs)

    trainer._save_checkpoint = filled


def fill_disk(folder: Path, leave: int) -> None:
    """Write `filler` into `folder`, so large that `leave` bytes stay free."""
    with open(folder / "filler", "wb") as file:
        file.write(bytes(max(0, shutil.disk_usage(folder).free - leave)))
