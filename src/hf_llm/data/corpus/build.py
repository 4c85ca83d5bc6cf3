"""Make the corpus of a recipe's `corpus` section: Parquet files that `datasets.load_dataset` opens.

The work is done in passes. Each is a set of independent tasks that read the files of the pass before:

1. cleaning: one task for each read task of the sources;
2. near-duplicates: one task finds them among all documents;
3. sharding: one task for each shard, a range of ids;
4. repeated passages, if the recipe asks for it: find and cut them, shard by shard.

A finished task is not run again. Memory holds one read task or one shard per core, however large the corpus is, except
in the search for near-duplicates (`dedup_pass.py`).
"""

import json
import math
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import xxhash

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import UserError
from hf_llm.core.extras import require_extras
from hf_llm.core.format import format_bytes
from hf_llm.data.corpus.clean_pass import MODELS_FOLDER, clean_read_task
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.corpus.dedup_pass import (
    cut_shard,
    find_near_duplicates,
    find_repeated_in_partition,
    merge_repeated_partitions,
    write_shard,
    write_shard_windows,
)
from hf_llm.data.corpus.executors import Executor
from hf_llm.data.corpus.filter_pipeline import train_filters
from hf_llm.data.corpus.filters.decontamination import evaluation_sets
from hf_llm.data.corpus.ledger import make_ledger, sum_read_errors
from hf_llm.data.corpus.sources import ReadTask, list_read_tasks
from hf_llm.data.corpus.splits import SPLIT_NAMES
from hf_llm.data.corpus.task_runner import run_tasks
from hf_llm.data.files.archives import is_archive
from hf_llm.data.files.compressed import COMPRESSED_SUFFIXES
from hf_llm.data.files.file_formats import EXTRA_OF_FORMAT, detect_format, resolve_format
from hf_llm.data.files.read_errors import ReadErrors, describe_input

SHARD_BYTES = 64 << 20  # text of a shard of the corpus, its splits together
LEDGER = "ledger.json"
RESULT_FORMAT = 2  # of what a task of the first pass returns: an interrupted run with another one reads again

# Estimates of the space that making a corpus takes.
COMPRESSION_RATIO = 4  # bytes of text per byte of a compressed file
WORK_RATIO = 1  # bytes per byte of text: the cleaned documents and the corpus take half of it each
PASSAGES_RATIO = 4  # further bytes per byte of text, if repeated passages are searched for


def make_corpus(section: Corpus, folder: Path, key: str, made_with: str = "") -> dict:
    """Make `data/*.parquet`, `rejected/*.parquet` and `ledger.json` in `folder`, or resume an interrupted run.

    `key` identifies the settings, `made_with` the versions of the programs that read and clean. Cleaned documents of an
    earlier run are reused if only settings of the later passes have changed.

    Returns the ledger. Raises UserError for sources that cannot be read, of which too many records cannot be read, or
    that leave a split empty, and for a disk that is too small.
    """
    work = folder / "work"
    ledger_file = folder / LEDGER
    if not ledger_file.exists():
        work.mkdir(exist_ok=True)
        if not (work / LEDGER).exists():
            ledger = _run_passes(section, work, key, made_with)
            write_text(work / LEDGER, json.dumps(ledger, indent=2, ensure_ascii=False))
        _move_finished(work, folder)
    shutil.rmtree(work, ignore_errors=True)
    return json.loads(ledger_file.read_text(encoding="utf-8"))


def _move_finished(work: Path, folder: Path) -> None:
    """Move the finished corpus from `work` to its folder, the ledger last: where that is, the corpus is complete."""
    for name in ("data", "rejected", MODELS_FOLDER):
        if (work / name).exists():  # if not, it was moved by a run that was killed at this point
            os.replace(work / name, folder / name)
    os.replace(work / LEDGER, folder / LEDGER)


def _run_passes(section: Corpus, work: Path, key: str, made_with: str) -> dict:
    """Run all passes and return the ledger; the files they leave in `work` are moved to their places by the caller."""
    tasks = list_read_tasks(section.sources)
    require_extras(*extras_of_tasks(tasks, section.executor))
    check_space(tasks, work, section)

    models = work / MODELS_FOLDER
    measured = _prepare_filters(section, models)
    names = _name_read_tasks(section, tasks, models, made_with)
    shard_folder = work / _digest([key, names])  # a different one for different settings
    shard_folder.mkdir(exist_ok=True)

    passes = {"cleaning": _run_clean_pass(section, tasks, work, names)}
    passes |= _run_shard_passes(section, passes["cleaning"], work, shard_folder)

    ledger = make_ledger(tasks, passes)
    ledger["learned"] = measured
    ledger["evaluation_sets"] = evaluation_sets(models) if section.decontaminate else []
    _check_not_empty(section, ledger)
    _gather_files(work, shard_folder, passes)
    return ledger


def extras_of_tasks(tasks: list[ReadTask], executor: str) -> list[str]:
    """Return the extras of hf_llm whose packages these tasks need, in a fixed order."""
    extras = {"corpus"}
    if executor == "ray":
        extras.add("ray")
    for task in tasks:
        if task.source.crawl:
            formats = {"warc"}
        elif task.source.format:
            formats = {task.source.format}
        else:
            formats = {detect_format(Path(name)) or _detect_content_format(Path(path)) for path, name in task.files}
        extras.update(EXTRA_OF_FORMAT[name] for name in formats if name in EXTRA_OF_FORMAT)
    return sorted(extras)


def _detect_content_format(path: Path) -> str | None:
    """Return the format that a file's content tells; None if it cannot be read now, which its reader tells."""
    try:
        return resolve_format(path, None).format
    except OSError:
        return None


def _prepare_filters(section: Corpus, models: Path) -> dict[str, dict]:
    """Train the filters that have a model and index the evaluation sets, in `models`. Returns what was measured."""
    models.mkdir(exist_ok=True)
    measured = {}
    rules_of_sources = [source.rules for source in section.sources if source.rules]
    for rules in [section.rules, *rules_of_sources]:
        measured |= train_filters(rules, models)
    if section.decontaminate:
        section.decontaminate.write_index(models)
    return measured


def _name_read_tasks(section: Corpus, tasks: list[ReadTask], models: Path, made_with: str) -> list[str]:
    """Name each read task by a digest of everything that its cleaned documents depend on.

    Settings of the later passes are not included, so that cleaned documents are reused when only these change.
    """
    model_digests = {}
    for path in sorted(models.iterdir()):
        model_digests[path.name] = xxhash.xxh3_64_hexdigest(path.read_bytes())
    shared_inputs = [
        RESULT_FORMAT,
        made_with,
        model_digests,
        section.min_chars,
        section.max_chars,
        section.decontaminate,
        section.deduplicate.near,
    ]
    names = []
    for task in tasks:
        rules = section.select_rules(task.source, task.is_code)
        kind = [task.is_repository, task.is_code]
        task_inputs = [task.source, rules, task.label, task.position, task.state, task.shard, kind]
        names.append(_digest([shared_inputs, *task_inputs]))
    return names


def _digest(value: object) -> str:
    return xxhash.xxh3_64_hexdigest(json.dumps(value, default=asdict).encode())


def _run_clean_pass(section: Corpus, read_tasks: list[ReadTask], work: Path, names: list[str]) -> list[dict]:
    """Clean the documents of every read task. Raises UserError for a source with too many read errors."""
    tasks = {}
    for name, read_task in zip(names, read_tasks, strict=True):
        result_file = work / f"{name}.json"
        tasks[result_file] = (section, read_task, work, name)
    sizes = [read_task.bytes for read_task in read_tasks]
    executor = Executor(section.executor, section.cluster)
    results = run_tasks(tasks, clean_read_task, sizes, "cleaning", executor)

    for label, errors in sum_read_errors(read_tasks, results).items():
        tasks_of_source = [task for task in read_tasks if task.label == label]
        errors.check_dropped_share(f"corpus source {label}", suggest_format(tasks_of_source, errors))
    return results


def suggest_format(tasks: list[ReadTask], errors: ReadErrors) -> str:
    """Return the `format` to name for a source whose read errors are files that belong to others; empty if none is."""
    has_format = any(task.source.format for task in tasks)
    has_papers = any(detect_format(Path(name)) == "latex" for task in tasks for _, name in task.files)
    has_pdf_errors = any("PDF" in reason for reason in errors.dropped)
    if has_papers and has_pdf_errors and not has_format:
        return "The PDFs beside .tex files are mostly their figures: `format: latex` reads the papers alone."
    return ""


def _run_shard_passes(section: Corpus, cleaned: list[dict], work: Path, folder: Path) -> dict[str, list[dict]]:
    """Run the passes after cleaning, whose files are in `folder`. Returns their results, by pass."""
    files = [work / name for result in cleaned for name in result["files"]]
    size = sum(result["flows"][-1]["bytes"] for result in cleaned)
    shard_count = max(1, math.ceil(size / SHARD_BYTES))
    executor = Executor(section.executor, section.cluster)
    passes: dict[str, list[dict]] = {}

    def run_per_shard(title: str, work_function: Callable[..., dict], *arguments: object) -> None:
        tasks = {}
        for number in range(shard_count):
            result_file = folder / f"{title}-{number:05d}.json"
            tasks[result_file] = (*arguments, folder, number, shard_count)
        sizes = [size // shard_count] * shard_count
        passes[title] = run_tasks(tasks, work_function, sizes, title, executor)

    def run_once(title: str, work_function: Callable[..., dict], *arguments: object) -> None:
        tasks = {folder / f"{title}.json": arguments}
        passes[title] = run_tasks(tasks, work_function, [size], title, Executor())

    near = section.deduplicate.near
    if near:
        run_once("near-duplicates", find_near_duplicates, near, files, folder)
    run_per_shard("sharding", write_shard, section, files)

    passages = section.deduplicate.substring
    if passages:
        run_per_shard("windows", write_shard_windows, passages)
        run_per_shard("repetitions", find_repeated_in_partition)
        run_once("gathering", merge_repeated_partitions, folder, shard_count)
        run_per_shard("cutting", cut_shard, section)
    return passes


def check_space(tasks: list[ReadTask], folder: Path, section: Corpus) -> None:
    """Raise UserError where the disk does not have the space that making the corpus takes.

    The space is estimated from the sizes of the files; the size of downloads is not known and counts as 0.
    """
    text_bytes = 0
    for task in tasks:
        is_compressed = any(_is_compressed(Path(name)) for _, name in task.files)
        text_bytes += task.bytes * (COMPRESSION_RATIO if is_compressed else 1)
    ratio = WORK_RATIO
    if section.deduplicate.substring:
        ratio += PASSAGES_RATIO
    needed_bytes = text_bytes * ratio

    # Files that an interrupted run has already written do not need their space again.
    files = [path for path in folder.rglob("*") if path.is_file()]
    written_bytes = sum(path.stat().st_size for path in files)
    free_bytes = shutil.disk_usage(folder).free + written_bytes
    if needed_bytes > free_bytes:
        raise UserError(
            f"{folder.absolute()} has {format_bytes(free_bytes)} free; a corpus of {format_bytes(text_bytes)} of text "
            f"takes about {format_bytes(needed_bytes)} while it is made. Free some space, or run from a folder on a "
            f"larger disk"
        )


def _is_compressed(path: Path) -> bool:
    return is_archive(path) or path.suffix.lower() in {*COMPRESSED_SUFFIXES, ".parquet"}


def _gather_files(work: Path, shard_folder: Path, passes: dict[str, list[dict]]) -> None:
    """Move what the passes have written to where it is in a finished corpus, within `work`.

    The records of dropped documents are numbered in the order of passes and tasks. An empty folder of models is
    removed. A file that is missing has been moved already, by a run that was killed at this point.
    """
    (work / "rejected").mkdir(exist_ok=True)
    if not any((work / MODELS_FOLDER).iterdir()):
        (work / MODELS_FOLDER).rmdir()

    records = []
    for title, results in passes.items():
        folder = work if title == "cleaning" else shard_folder
        for result in results:
            names = result.get("rejected", {}).get("files", [])
            records += [folder / name for name in names]
    for number, path in enumerate(records):
        if path.exists():
            os.replace(path, work / "rejected" / f"{number:05d}.parquet")

    data = shard_folder / "data"
    if data.exists():
        for unfinished in data.glob("*.tmp"):  # of a killed run
            unfinished.unlink()
        os.replace(data, work / "data")


def _check_not_empty(section: Corpus, ledger: dict) -> None:
    """Raise UserError where a split that has a share has no documents."""
    empty_splits = [name for name in SPLIT_NAMES if getattr(section.split, name) and name not in ledger["splits"]]
    if not empty_splits:
        return

    total = sum(counts["documents"] for counts in ledger["splits"].values())
    problem = f"the corpus has {total:,} documents"
    if total:
        problem += f", none of them in {empty_splits[0]}"

    lines = [f"{problem}: {_describe_remedy(section, ledger)}. Documents kept by each rule:"]
    for label, entry in ledger["sources"].items():
        kept = [f"{rule} {counts['documents']:,}" for rule, counts in entry["rules"].items()]
        lines.append(f"  {label}: {', '.join(kept)}")
        lines += [f"    {line}" for line in describe_input(entry)]
    raise UserError("\n".join(lines))


def _describe_remedy(section: Corpus, ledger: dict) -> str:
    """Say what gives a corpus more documents, by what its filter of lengths has dropped."""
    dropped: Counter = Counter()
    for entry in ledger["sources"].values():
        dropped.update(entry["rules"].get("length", {}).get("dropped", {}))
    remedies = ["add text"]
    if dropped["too_long"]:
        remedies.append(f"raise corpus.max_chars ({section.max_chars}), since longer rows and pages are not cut")
    if dropped["too_short"] or not dropped:
        remedies.append(f"lower corpus.min_chars ({section.min_chars})")
    remedies.append("change corpus.split")
    return f"{', '.join(remedies[:-1])} or {remedies[-1]}"
