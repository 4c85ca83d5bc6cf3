"""From raw text to a clean corpus: MB/s of a core and memory as the input grows.

    HF_LLM_DATA=samples python benchmarks/data.py --megabytes 10 100 1000

The input is JSONL, made of paragraphs of real text (WikiText-2, C4) drawn at random, one document in ten a copy or a
near-copy of another. Every size is a whole run of `hf_llm.prepare_data` in a process of its own: reading, normalising,
language, Gopher's rules, spam, redaction, exact and near-duplicates, shards. MB/s of a core are those of a second of
processor time, imports included, whatever else the machine does. Memory is the peak of all its processes together,
sampled every 50 ms. The other data benchmarks measure one part each against a named peer: cleaning.py,
deduplication.py, tokenising.py, extraction.py, language_identification.py.
"""

import argparse
import contextlib
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

RECIPE = """
name: bench
corpus:
  sources: [{path: texts, license: unknown}]
  rules: %s
  deduplicate: {near: {}, substring: %s}
"""
RULES = "{language: {keep: [en]}, gopher_repetition: {}, gopher_quality: {}, spam: {}, pii: {}}"
FILE_BYTES = 20_000_000


def paragraphs(data: Path) -> list[str]:
    """Real paragraphs of 200 characters or more."""
    texts = [(data / "wikitext2" / "train.part1.txt").read_text(encoding="utf-8")]
    lines = (data / "web_text" / "c4_demo.jsonl").read_text(encoding="utf-8").splitlines()
    texts += [json.loads(line)["text"] for line in lines]
    return [line.strip() for text in texts for line in text.splitlines() if len(line) > 200]


def write_input(folder: Path, size: int, pool: list[str]) -> None:
    """About `size` bytes of documents in JSONL files of 20 MB."""
    rng, written, number, last = random.Random(0), 0, 0, ""
    folder.mkdir(parents=True)
    while written < size:
        with open(folder / f"{number:04d}.jsonl", "w", encoding="utf-8") as file:
            start = written
            while written - start < min(FILE_BYTES, size):
                if last and rng.random() < 0.1:
                    text = last if rng.random() < 0.5 else last + " And so on."
                else:
                    words = " ".join(rng.sample(pool, rng.randint(1, 6))).split()
                    start_at = rng.randrange(max(1, len(words) // 4))
                    text = last = " ".join(words[start_at:])
                written += file.write(json.dumps({"text": text}) + "\n")
        number += 1


def run(folder: Path, cores: int, rules: str, substring: str) -> tuple[float, float, list[float], dict]:
    """Seconds, processor seconds, peak memory (MB) of all processes together and of the largest worker, the ledger."""
    (folder / "bench.yaml").write_text(RECIPE % (rules, substring), encoding="utf-8")
    command = [sys.executable, "-m", "hf_llm.prepare_data", "bench.yaml", f"--corpus.cluster.workers={cores}"]
    started, spent, peaks = time.perf_counter(), processor_seconds(), [0, 0]
    with open(folder / "log.txt", "w") as log:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, env=environment)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peaks = [max(pair) for pair in zip(peaks, memory(watched), strict=True)]
            time.sleep(0.05)
    seconds = time.perf_counter() - started
    if process.returncode:
        sys.exit((folder / "log.txt").read_text())
    ledger = json.loads((folder / "runs/bench/corpus/ledger.json").read_text())
    return seconds, processor_seconds() - spent, [peak / 1e6 for peak in peaks], ledger


def processor_seconds() -> float:
    """What all child processes that have ended took, and their children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory(process: psutil.Process) -> tuple[int, int]:
    """Bytes that only this process and its children hold, and that the largest child does; no page counted twice."""
    held = [0]
    with contextlib.suppress(psutil.NoSuchProcess):  # one that ended meanwhile
        held = [one.memory_full_info().uss for one in [process, *process.children(recursive=True)]]
    return sum(held), max(held[1:], default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[10, 100])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--substring", action="store_true", help="cut repeated passages, too")
    parser.add_argument("--no-rules", action="store_true", help="leave out what judges a document by itself")
    arguments = parser.parse_args()
    pool = paragraphs(Path(os.environ["HF_LLM_DATA"]))
    heads = ["MB in", "documents", "kept", "seconds", "cpu s", "MB/s/core", "peak MB", "worker"]
    print("{:>7} {:>10} {:>8} {:>8} {:>7} {:>10} {:>8} {:>7}".format(*heads))
    for megabytes in arguments.megabytes:
        folder = Path(tempfile.mkdtemp(prefix="hf_llm-bench-"))
        try:
            write_input(folder / "texts", megabytes * 1_000_000, pool)
            rules, substring = "{}" if arguments.no_rules else RULES, "{}" if arguments.substring else "null"
            seconds, spent, peaks, ledger = run(folder, arguments.cores, rules, substring)
        finally:
            shutil.rmtree(folder)
        steps = list(ledger["sources"]["texts"]["rules"].values())
        print(
            f"{megabytes:>7,} {steps[0]['documents']:>10,} {steps[-1]['documents']:>8,} {seconds:>8.1f} "
            f"{spent:>7.1f} {megabytes / spent:>10.2f} {peaks[0]:>8,.0f} {peaks[1]:>7,.0f}",
            flush=True,
        )
        rules = {name: rule["seconds"] for name, rule in ledger["sources"]["texts"]["rules"].items()}
        print("        seconds: " + ", ".join(f"{name} {value}" for name, value in rules.items() if value))
        print("        passes:  " + ", ".join(f"{name} {value}" for name, value in ledger["seconds"].items()))


if __name__ == "__main__":
    main()
