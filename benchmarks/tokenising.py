"""Megabytes of text tokenised per second: our shards, tokenizers itself, `datasets.map` and datatrove's tokenizer step.

    python benchmarks/tokenising.py FOLDER              # of text files; medians of interleaved rounds
    python benchmarks/tokenising.py FOLDER --rounds 5 --megabytes 40
    python benchmarks/tokenising.py FOLDER --memory     # peak memory of ours from 10 MB to 1 GB

One BPE of 8,192 tokens is trained of the text; all tokenise the same Parquet file of documents of about 3,000
characters, each in a process of its own, the time of the imports left out. `encode_batch` keeps nothing: it is the
bound. Ours, `datasets.map` (two processes, ids to Arrow) and datatrove (ids to its .ds file) read the Parquet file and
write to disk. CPU seconds, of all threads and processes, say more than the clock where a machine is not idle.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WAYS = ("encode_batch", "hf_llm", "datasets.map", "datatrove")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=20, help="of text; that of the folder is repeated or cut")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    return parser.parse_args()


def write_corpus(folder: Path, work: Path, size: int) -> None:
    """`work/corpus/data/train-0.parquet` of about `size` bytes, and `work/tokenizer.json` trained of some."""
    import pyarrow
    import pyarrow.parquet

    from hf_llm.tokenization.train import TokenizerSection, train_tokenizer

    whole = [path.read_text("utf-8", errors="replace") for path in sorted(folder.rglob("*")) if path.is_file()]
    texts = [text[i : i + 3000] for text in whole for i in range(0, len(text), 3000)]
    section = TokenizerSection(vocab_size=8192, sample_bytes=10_000_000)
    train_tokenizer(texts, section).backend_tokenizer.save(str(work / "tokenizer.json"))
    (work / "corpus/data").mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema([(name, pyarrow.string()) for name in ("id", "text", "source", "language")])
    with pyarrow.parquet.ParquetWriter(work / "corpus/data/train-0.parquet", schema, compression="zstd") as writer:
        written, number = 0, 0
        while written < size:
            rows = []
            for text in texts[number % len(texts) :][:1000]:
                rows.append({"id": str(number), "text": f"{number} {text}", "source": "web", "language": "en"})
                written += len(text.encode())
                number += 1
                if written >= size:
                    break
            writer.write_table(pyarrow.Table.from_pylist(rows, schema=schema))


def one_round(way: str, work: Path) -> None:
    """Tokenise in this process and print seconds and peak memory as JSON."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    path = work / "corpus/data/train-0.parquet"
    run = {"encode_batch": bound, "hf_llm": ours, "datasets.map": mapped, "datatrove": stepped}[way]
    seconds, before = run(tokenizer, path, work)
    cpu = cpu_seconds() - before
    print(
        json.dumps({"seconds": seconds, "cpu": cpu, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10})
    )


def cpu_seconds() -> float:
    """Of this process and those it has started and waited for."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(used.ru_utime + used.ru_stime for used in both)


def bound(tokenizer, path: Path, work: Path) -> tuple[float, float]:
    import pyarrow.parquet

    texts = pyarrow.parquet.read_table(path)["text"].to_pylist()
    start, before = time.perf_counter(), cpu_seconds()
    for first in range(0, len(texts), 1000):
        tokenizer.encode_batch(texts[first : first + 1000], add_special_tokens=False)
    return time.perf_counter() - start, before


def ours(tokenizer, path: Path, work: Path) -> tuple[float, float]:
    import numpy as np
    import pyarrow.parquet  # noqa: F401  imported before the clock starts

    from hf_llm.data.tokens.token_shards import read_documents, tokenize_documents, write_shards

    start, before = time.perf_counter(), cpu_seconds()
    batches = tokenize_documents(
        read_documents(path), tokenizer, tokenizer.token_to_id("<|endoftext|>"), np.dtype(np.uint16)
    )
    for _ in write_shards(work, "ours", batches):
        pass
    return time.perf_counter() - start, before


def mapped(tokenizer, path: Path, work: Path) -> tuple[float, float]:
    from datasets import Dataset, disable_progress_bars
    from transformers import PreTrainedTokenizerFast

    disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|endoftext|>")
    rows = Dataset.from_parquet(str(path), cache_dir=str(work / f"cache{time.time_ns()}"))
    start, before = time.perf_counter(), cpu_seconds()
    rows.map(
        lambda batch: {"input_ids": fast(batch["text"], return_attention_mask=False)["input_ids"]},
        batched=True,
        num_proc=2,
        remove_columns=rows.column_names,
    )
    return time.perf_counter() - start, before


def stepped(tokenizer, path: Path, work: Path) -> tuple[float, float]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import ParquetReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.utils.logging import logger

    logger.remove()
    out = work / f"datatrove{time.time_ns()}"
    steps = [
        ParquetReader(str(path.parent)),
        DocumentTokenizer(str(out), tokenizer_name_or_path=str(work / "tokenizer.json"), eos_token="<|endoftext|>",
                          shuffle_documents=False, save_index=False),
    ]  # fmt: skip
    start, before = time.perf_counter(), cpu_seconds()
    LocalPipelineExecutor(steps, logging_dir=str(out / "logs"), skip_completed=False).run()
    return time.perf_counter() - start, before


def measure(way: str, options: argparse.Namespace, work: Path) -> dict:
    """One round in a process of its own."""
    command = [sys.executable, __file__, str(work), "--way", way]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    options = parse()
    if options.way:
        return one_round(options.way, options.folder)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if options.memory:
            for megabytes in (10, 100, 1000):
                write_corpus(options.folder, work, megabytes * 10**6)
                found = measure("hf_llm", options, work)
                print(f"{megabytes:>5} MB: {megabytes / found['seconds']:.1f} MB/s, peak {found['peak'] / 1e6:,.0f} MB")
            return None
        write_corpus(options.folder, work, options.megabytes * 10**6)
        rounds = [{way: measure(way, options, work) for way in WAYS} for _ in range(options.rounds)]
    for way in WAYS:
        rate = statistics.median(options.megabytes / each[way]["seconds"] for each in rounds)
        clock, cpu = (
            statistics.median(each["encode_batch"][unit] / each[way][unit] for each in rounds)
            for unit in ("seconds", "cpu")
        )
        print(f"{way:<14} {rate:6.1f} MB/s   {clock:5.2f} x encode_batch by the clock   {cpu:5.2f} x by CPU seconds")


if __name__ == "__main__":
    main()
