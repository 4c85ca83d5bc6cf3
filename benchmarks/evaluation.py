"""Requests per second of the harness's tasks: hf_llm's scoring against lm_eval's own HFLM, on the same model and rows.

    HF_LLM_DATA=... OMP_NUM_THREADS=1 python benchmarks/evaluation.py      # about ten minutes on an idle CPU core
    HF_LLM_DATA=... OMP_NUM_THREADS=1 python benchmarks/evaluation.py --tasks hellaswag --documents 40 --rounds 1

HFLM runs with its logits cache on and the best of the batch sizes tried. Both get the same task object, and build
requests, tokenise, score and compute metrics; rounds are interleaved. A request is one choice of one document. Figures
are requests per second of processor time, the median over the rounds, and the median of the ratio in each round. The
largest difference of a log-likelihood, and the documents on which the choice differs, are beside them.

The last lines are the processor's seconds from the start of Python to the first scored batch.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import lm_eval
import torch
from lm_eval.models.huggingface import HFLM

from hf_llm.evaluation.benchmark import TaskSettings
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.harness.tasks import find_benchmarks
from hf_llm.evaluation.journal import Journal
from hf_llm.inference.generate import set_stop_tokens
from hf_llm.model.configuration_hf_llm import HfLlmConfig
from hf_llm.model.modeling_hf_llm import HfLlmForCausalLM
from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

TASKS = {"hellaswag": 0, "arc_easy": 0, "openbookqa": 0, "mmlu_anatomy": 5, "truthfulqa_mc2": 0}  # and their shots
BATCH_SIZES = (1, 4, 16, 64)
TRIAL_DOCUMENTS = 24  # with which HFLM's batch size is chosen

FIRST_SCORE = """
import sys, time
from pathlib import Path
from hf_llm.evaluation.benchmark import TaskSettings
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.harness.tasks import find_benchmarks
from hf_llm.evaluation.journal import Journal
class FirstBatch(Journal):
    def append(self, rows):
        super().append(rows)
        print(time.process_time())
        sys.exit()
model, data, journal = sys.argv[1:]
[benchmark] = find_benchmarks(TaskSettings("hellaswag"), Path(data), False, False)
benchmark.score_documents(EvaluatedModel("model", Path(model)), FirstBatch(Path(journal)))
"""


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--documents", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--vocabulary", type=int, default=16384)
    return parser.parse_args()


def save_model(folder: Path, data: Path, vocabulary: int) -> EvaluatedModel:
    """A model of about 10M parameters with random weights, and a tokenizer trained on WikiText-2."""
    text = (data / "wikitext2" / "train.part1.txt").read_text(encoding="utf-8")[: 4 << 20]
    tokenizer = train_tokenizer(text.splitlines(), TokenizerSection(vocab_size=vocabulary))
    torch.manual_seed(0)
    config = HfLlmConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = HfLlmForCausalLM(config)
    set_stop_tokens(model, tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return EvaluatedModel("model", folder)


def find_benchmark(name: str, data: Path, documents: int):
    [benchmark] = find_benchmarks(TaskSettings(name, shots=TASKS[name] or None, limit=documents), data, False, False)
    return benchmark


def score_by_us(benchmark, evaluated: EvaluatedModel) -> tuple[float, dict[str, list[float]]]:
    """Processor seconds, and the log-likelihoods of each document."""
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder))
        start = time.process_time()
        benchmark.score_documents(evaluated, journal)
        rows = journal.read()
        benchmark.summarize(rows)
        seconds = time.process_time() - start
    return seconds, {row["id"]: row["log_likelihoods"] for row in rows}


def score_by_hflm(benchmark, evaluated: EvaluatedModel, batch_size: int) -> tuple[float, dict[str, list[float]]]:
    """The same by lm_eval's own evaluation of the task."""
    lm = HFLM(pretrained=evaluated.model, tokenizer=evaluated.tokenizer, batch_size=batch_size, logits_cache=True)
    task = benchmark.task
    start = time.process_time()
    results = lm_eval.evaluate(
        lm, {"tasks": {benchmark.name: task}, "groups": {}}, limit=benchmark.limit, bootstrap_iters=0, log_samples=True
    )
    seconds = time.process_time() - start
    samples = results["samples"][benchmark.name]
    return seconds, {str(row["doc_id"]): [score for score, _ in row["filtered_resps"]] for row in samples}


def choose_batch_size(name: str, data: Path, evaluated: EvaluatedModel) -> int:
    seconds = {}
    for size in BATCH_SIZES:
        seconds[size], _ = score_by_hflm(find_benchmark(name, data, TRIAL_DOCUMENTS), evaluated, size)
    return min(seconds, key=seconds.__getitem__)


def compare(ours: dict[str, list[float]], theirs: dict[str, list[float]]) -> tuple[float, int]:
    """The largest difference in nats, and the documents on which another choice is likeliest."""
    assert ours.keys() == theirs.keys()
    largest = max(abs(a - b) for name in ours for a, b in zip(ours[name], theirs[name], strict=True))
    other = sum(values.index(max(values)) != theirs[name].index(max(theirs[name])) for name, values in ours.items())
    return largest, other


def main() -> None:
    arguments = parse()
    data = Path(os.environ["HF_LLM_DATA"])
    with tempfile.TemporaryDirectory() as folder:
        evaluated = save_model(Path(folder) / "model", data, arguments.vocabulary)
        millions = evaluated.model.num_parameters() / 1e6
        print(f"{millions:.1f}M parameters, vocabulary {arguments.vocabulary}, {torch.get_num_threads()} threads")
        print(f"{'task':<16}{'requests':>9}{'HFLM':>9}{'batch':>6}{'hf_llm':>9}{'ratio':>7}{'nats':>10}{'other':>6}")
        for name in arguments.tasks:
            batch_size = choose_batch_size(name, data, evaluated)
            ours, theirs = [], []
            for _ in range(arguments.rounds):
                benchmark = find_benchmark(name, data, arguments.documents)
                _ = benchmark.task  # its rows are read before the clock starts
                seconds, values = score_by_us(benchmark, evaluated)
                other_seconds, other_values = score_by_hflm(benchmark, evaluated, batch_size)
                ours.append(seconds)
                theirs.append(other_seconds)
            requests = sum(map(len, values.values()))
            ratio = statistics.median(slow / fast for slow, fast in zip(theirs, ours, strict=True))
            nats, other = compare(values, other_values)
            print(
                f"{name:<16}{requests:>9}{requests / statistics.median(theirs):>9.1f}{batch_size:>6}"
                f"{requests / statistics.median(ours):>9.1f}{ratio:>7.2f}{nats:>10.1e}{other:>6}",
                flush=True,
            )

        seconds = []
        for number in range(arguments.rounds):
            command = [sys.executable, "-c", FIRST_SCORE, f"{folder}/model", str(data), f"{folder}/journal{number}"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.split()[-1]))
        print(f"first score after {statistics.median(seconds):.1f} s of the processor")


if __name__ == "__main__":
    main()
