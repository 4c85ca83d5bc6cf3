"""Score a model on a benchmark: what is scored already is read, what is new is scored in all processes of a launch."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_llm.core.console import is_main_process, print_main
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, Score
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.journal import Journal
from hf_llm.evaluation.score_store import Result, ScoreStore

MAX_NAMES_SHOWN = 4  # benchmarks of a group that a line lists by name
OVERLAPS = "overlaps"  # a folder with what was found in training texts
DOCUMENTS = "documents"  # in a result, the file with prompts and answers, below the evaluation's folder


def run_benchmark(benchmark: Benchmark, model: EvaluatedModel, store: ScoreStore) -> Result:
    """Return the result of a benchmark: `scores`, `settings`, `group`, `documents`; or `not_run`, a reason.

    Every process of a launch has to call it; each scores its part of the documents, and the result is that of all in
    the main process. The scored documents are written batch by batch, so that a killed evaluation goes on from there.
    """
    identity = benchmark.identify()
    known = store.read(model, benchmark.name, identity)
    # All processes have to see the same before one of them writes it.
    wait_for_all()
    if known is not None:
        return known

    folder = store.folder(model, benchmark.name, identity)
    journal = Journal(folder, model.rank, model.world_size)
    wait_for_all()
    if journal.finished:
        print_main(f"{model.name}: {benchmark.name}: {len(journal.finished):,} documents are scored already")
    try:
        benchmark.score_documents(model, journal)
    except NotRunError as error:
        wait_for_all()
        return describe_not_run(str(error), benchmark.settings, benchmark.group)
    wait_for_all()
    rows = journal.read()
    scores = benchmark.summarize(rows)
    notes = benchmark.describe_documents(rows)
    result = {
        "scores": [score.to_json() for score in scores],
        "notes": notes,
        "settings": benchmark.settings,
        "group": benchmark.group,
        DOCUMENTS: str(folder.relative_to(store.root.parent)),
    }
    if is_main_process():
        store.write(model, benchmark.name, identity, result)
        print_main(f"{model.name}: {benchmark.name}: {describe_scores(scores)}")
        for note in notes:
            print_main(f"  {note}")
    return result


def add_overlaps(
    benchmarks: list[Benchmark], results: dict[str, Result], model: EvaluatedModel, store: ScoreStore
) -> None:
    """Add to the results of a model what of each benchmark it was trained on: `overlap`, and `clean_scores`, the
    scores of the other documents. Main process only; prints a line for each benchmark that overlaps."""
    from hf_llm.evaluation.contamination import find_overlaps

    rows = {}
    texts = {}
    for benchmark in benchmarks:
        if results[benchmark.name].get("not_run"):
            continue
        rows[benchmark.name] = read_documents(store.root.parent, results[benchmark.name])
        texts[benchmark.name] = find_texts_of(benchmark, rows[benchmark.name])
    if not texts:
        return

    overlaps = find_overlaps(texts, model.path, store.root / OVERLAPS)
    for benchmark in benchmarks:
        overlap = overlaps.get(benchmark.name)
        if overlap is None:
            continue
        result = results[benchmark.name]
        result["overlap"] = overlap.to_json()
        overlapping = set(overlap.documents)
        if overlapping:
            kept = [row for row in rows[benchmark.name] if row["id"] not in overlapping]
            clean = benchmark.summarize(kept) if kept else []
            result["clean_scores"] = [score.to_json() for score in clean]
            without = f"; without them {describe_scores(clean[:1])}" if clean else ""
            print_main(
                f"  {benchmark.name}: {len(overlapping):,} of {overlap.all_documents:,} documents share text with what "
                f"{model.name} was trained on{without}"
            )


def describe_not_run(reason: str, settings: Mapping[str, Any], group: str = "") -> Result:
    """Return the result of a benchmark that was not run, with the reason."""
    return {"not_run": reason, "scores": [], "settings": dict(settings), "group": group}


def print_not_run(model: str, results: Mapping[str, Result]) -> None:
    """Say which benchmarks of a model were not run: those of a group together, with the reason of the first."""
    by_group: dict[str, list[str]] = {}
    members = Counter(result["group"] for result in results.values())
    for name, result in results.items():
        if result.get("not_run"):
            by_group.setdefault(result["group"] or name, []).append(name)
    for group, names in by_group.items():
        reason = results[names[0]]["not_run"]
        if len(names) == 1:
            print_main(f"{model}: {names[0]} was not run: {reason}")
            continue
        shown = ", ".join(names[:MAX_NAMES_SHOWN])
        if len(names) > MAX_NAMES_SHOWN:
            shown += f" and {len(names) - MAX_NAMES_SHOWN} more"
        print_main(
            f"{model}: {len(names)} of {members[group]} tasks of {group} were not run: {shown}\n"
            f"  the first of them: {reason}"
        )


def describe_scores(scores: list[Score]) -> str:
    """Say the score that stands for a benchmark in one line: its value, interval, chance and number of documents."""
    primary = [score for score in scores if score.is_primary] or scores[:1]
    return "; ".join(describe_score(score) for score in primary)


def describe_score(score: Score) -> str:
    """Say one score: `acc 31.2% (27.3% to 35.4%), chance 25.0%, 500 documents`."""
    parts = [f"{score.metric} {score.format_value()}"]
    if score.chance is not None:
        chance = score.format_number(score.chance)
        parts.append(f"not distinguishable from chance ({chance})" if score.is_at_chance else f"chance {chance}")
    parts.append(f"{score.documents:,} documents")
    return ", ".join(parts)


def find_texts_of(benchmark: Benchmark, rows: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Return the texts of the scored documents, by id, that a model must not have been trained on."""
    scored = {row["id"] for row in rows}
    return {name: texts for name, texts in benchmark.read_texts() if name in scored}


def read_documents(root: Path, result: Result) -> list[dict[str, Any]]:
    """Read the scored documents of a benchmark from the evaluation's folder `root`."""
    return Journal(root / result[DOCUMENTS]).read()


def wait_for_all() -> None:
    """Wait until every process of the launch is here."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
