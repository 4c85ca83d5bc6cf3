"""A pretraining killed at random moments under the supervisor, against the same run, uninterrupted.

    HF_LLM_DATA=... python benchmarks/killed_run.py          # 20 minutes each: on one process, then ZeRO-2 on two
    HF_LLM_DATA=... python benchmarks/killed_run.py --minutes 1 --kills 2 --processes 1 --hidden-size 64 --layers 2

A model of about 10M parameters learns WikiText-2, for so many steps as take `--minutes` here. At each of `--kills`
moments, drawn evenly over the steps and up to five seconds later, SIGKILL ends all processes of the launch or a single
rank, whatever they do just then: start, learn, save. `python -m hf_llm.supervise` does the rest. On one process the
final weights and the losses of all steps must be bit-equal, under ZeRO-2 on two the losses equal to 1e-3, and each step
be logged once. The exit code is 1 where a promise is not kept. A process has one thread, so that two make their runs
side by side where there are two cores: both runs of one process at once, those of two one after the other.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from hf_llm.core.manifest import file_digest
from hf_llm.pipeline.status import HEARTBEAT_SECONDS, read_status

ROOT = Path(__file__).parent.parent
TOLERANCE = 1e-3  # of the losses of two processes
TIMED = 12  # steps from which the length of the runs is estimated
RECIPE = """
name: whole
seed: 1
corpus:
  sources: [{{path: {data}/wikitext2/train.part1.txt, license: cc-by-sa-3.0}}]
tokenizer: {{vocab_size: 4096}}
model:
  hidden_size: {hidden_size}
  intermediate_size: {intermediate_size}
  num_hidden_layers: {layers}
  num_attention_heads: {heads}
  num_key_value_heads: {heads}
  max_position_embeddings: 256
  attention_dropout: 0.1
pretrain:
  tokens_per_step: 2048
  evaluation_tokens: 4096
  training: {{learning_rate: 2e-3, logging_steps: 1, per_device_train_batch_size: 4, report_to: none}}
"""


@dataclass
class Outcome:
    """What a run has come to: its weights' digest, the loss of each step in the order of the log, and its time."""

    weights: str
    steps: list[int]
    losses: list[float]
    minutes: float
    attempts: list[dict] = field(default_factory=list)
    kills: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=20, help="of the undisturbed run")
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--processes", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    parser.add_argument("--hidden-size", type=int, default=320)
    parser.add_argument("--layers", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and of whom they hit")
    options = parser.parse_args()
    kept = []
    for processes in options.processes:
        with tempfile.TemporaryDirectory() as folder:
            kept.append(compare(Path(folder), processes, options))
    sys.exit(0 if all(kept) else 1)


def compare(folder: Path, processes: int, options: argparse.Namespace) -> bool:
    """Make both runs in `folder`, print how they differ, and tell whether all is as promised."""
    prepare(folder, options)
    steps = estimate_steps(folder, processes, options.minutes)
    settings = [f"--pretrain.training.{key}={value}" for key, value in schedule(steps).items()]
    with ThreadPoolExecutor(max_workers=2 // processes) as side_by_side:
        whole = side_by_side.submit(undisturbed_run, folder, processes, settings)
        killed = side_by_side.submit(killed_run, folder, processes, settings, moments(options, steps), options)
        return report(whole.result(), killed.result(), processes, steps)


def prepare(folder: Path, options: argparse.Namespace) -> None:
    """The recipe, its tokens, and links to the launchers' settings."""
    width = options.hidden_size
    sizes = {"hidden_size": width, "intermediate_size": width * 27 // 10, "heads": width // 64}
    recipe = RECIPE.format(data=os.environ["HF_LLM_DATA"], layers=options.layers, **sizes)
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for name in ("accelerate_configs", "ds_configs"):
        (folder / name).symlink_to(ROOT / name)
    made = [sys.executable, "-m", "hf_llm.tokenize_corpus", "recipe.yaml"]
    subprocess.run(made, **surroundings(folder), check=True)
    for name in ("timed", "killed"):
        (folder / "runs" / name).mkdir()
        for item in ("corpus", "tokenizer", "tokens"):
            (folder / "runs" / name / item).symlink_to(folder / "runs/whole" / item)


def stage(processes: int) -> list[str]:
    """The command that pretrains, up to the recipe."""
    if processes == 1:
        return [sys.executable, "-m", "hf_llm.pretrain"]
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--config_file=accelerate_configs/zero2.yaml"]
    return [*launcher, f"--num_processes={processes}", "--main_process_port=0", "-m", "hf_llm.pretrain"]


def surroundings(folder: Path) -> dict:
    """Where and how a command is run; its output is added to a file."""
    variables = {"DS_ACCELERATOR": "cpu", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    out = os.open(folder / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    return {"cwd": folder, "env": {**os.environ, **variables}, "stdout": out, "stderr": out}


def schedule(steps: int) -> dict[str, int]:
    """The steps of a run, of its warmup, and between two checkpoints and evaluations."""
    every = max(2, steps // 20)
    return {"max_steps": steps, "warmup_steps": every, "save_steps": every, "eval_steps": max(2, steps // 4)}


def estimate_steps(folder: Path, processes: int, minutes: float) -> int:
    """How many steps take `minutes`, by a short run."""
    short = [f"--pretrain.training.{key}={value}" for key, value in schedule(TIMED).items()]
    subprocess.run([*stage(processes), "recipe.yaml", "--name=timed", *short], **surroundings(folder), check=True)
    history = json.loads((folder / "runs/timed/base/trainer_state.json").read_text())["log_history"]
    speeds = sorted(entry["tokens_per_second"] for entry in history if "tokens_per_second" in entry)
    return max(TIMED, round(minutes * 60 * speeds[len(speeds) // 2] / 2048))


def moments(options: argparse.Namespace, steps: int) -> list[tuple[int, float]]:
    """The steps at which the run is hit, each with the seconds to wait then."""
    draw = random.Random(options.seed)
    return [
        (int(share * steps), draw.uniform(0, HEARTBEAT_SECONDS))
        for share in sorted(draw.uniform(0, 0.9) for _ in range(options.kills))
    ]


def undisturbed_run(folder: Path, processes: int, settings: list[str]) -> Outcome:
    """The uninterrupted run."""
    began = time.monotonic()
    subprocess.run([*stage(processes), "recipe.yaml", *settings], **surroundings(folder), check=True)
    return outcome(folder / "runs/whole/base", time.monotonic() - began)


def killed_run(
    folder: Path, processes: int, settings: list[str], when: list[tuple[int, float]], options: argparse.Namespace
) -> Outcome:
    """The same run under the supervisor, hit at the moments `when`."""
    base, kills, draw = folder / "runs/killed/base", [], random.Random(options.seed)
    command = [sys.executable, "-m", "hf_llm.supervise", f"--max-relaunches={options.kills}", "--"]
    began = time.monotonic()
    supervisor = subprocess.Popen(
        [*command, *stage(processes), "recipe.yaml", "--name=killed", *settings], **surroundings(folder)
    )
    for step, seconds in when:
        while (
            len(attempts(base)) <= len(kills) or read_status(base).get("step", 0) < step
        ) and supervisor.poll() is None:
            time.sleep(0.05)
        time.sleep(seconds)
        if supervisor.poll() is not None:
            sys.exit(f"the run ended before it was hit after step {step}; take more --minutes\n{tail(folder)}")
        whom = hit(supervisor.pid, whole_launch=draw.random() < 0.5)
        kills.append(f"{time.monotonic() - began:.0f} s: {whom}, step {read_status(base).get('step', 0)}")
    if supervisor.wait():
        sys.exit(f"the supervisor ended with {supervisor.returncode}\n{tail(folder)}")
    found = outcome(base, time.monotonic() - began)
    found.attempts = attempts(base)
    found.kills = kills
    return found


def attempts(base: Path) -> list[dict]:
    """The supervisor's launches so far."""
    record = base / "logs/supervisor.json"
    return json.loads(record.read_text())["attempts"] if record.exists() else []


def tail(folder: Path) -> str:
    """The end of all that the commands have printed."""
    return (folder / "output.txt").read_text(encoding="utf-8")[-4000:]


def hit(supervisor: int, whole_launch: bool) -> str:
    """SIGKILL to all processes below the supervisor, or to the one rank that came last; waits until there is one."""
    while not (below := psutil.Process(supervisor).children(recursive=True)):
        time.sleep(0.02)
    ranks = [process for process in below if "-m hf_llm.pretrain" in " ".join(process.cmdline()[:4])]
    targets = below if whole_launch or not ranks else [max(ranks, key=lambda process: process.pid)]
    for process in targets:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    return f"all {len(targets)} processes" if targets is below else "one rank"


def outcome(base: Path, seconds: float) -> Outcome:
    """What a finished run has come to."""
    history = json.loads((base / "trainer_state.json").read_text())["log_history"]
    entries = [entry for entry in history if "loss" in entry]
    losses, steps = [entry["loss"] for entry in entries], [entry["step"] for entry in entries]
    return Outcome(file_digest(base / "model.safetensors"), steps, losses, seconds / 60)


def report(whole: Outcome, killed: Outcome, processes: int, steps: int) -> bool:
    """Print the two runs side by side; whether every promise is kept."""
    apart = max(abs(one - other) for one, other in zip(whole.losses, killed.losses, strict=True))
    once = killed.steps == whole.steps == list(range(1, steps + 1))
    equal = killed.weights == whole.weights
    kept = once and ((equal and apart == 0) if processes == 1 else apart <= TOLERANCE)
    print(f"\n{processes} process{'es under ZeRO-2' if processes > 1 else ''}, {steps} steps")
    print(f"  undisturbed   {whole.minutes:5.1f} min  final loss {whole.losses[-1]:.4f}")
    print(
        f"  killed        {killed.minutes:5.1f} min  final loss {killed.losses[-1]:.4f}  "
        f"launches {len(killed.attempts)}, resumed at {[attempt['from_step'] for attempt in killed.attempts[1:]]}"
    )
    for kill in killed.kills:
        print(f"    hit at {kill}")
    print(f"  weights {'bit-equal' if equal else 'differ'}; losses apart by at most {apart:.3g}")
    print(f"  every step logged once: {'yes' if once else 'NO'}; promise {'kept' if kept else 'BROKEN'}", flush=True)
    return kept


if __name__ == "__main__":
    main()
