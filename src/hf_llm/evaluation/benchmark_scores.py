"""The benchmark scores in results.json as rows: for the console, the report and the model card."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from hf_llm.evaluation.benchmark import Score
from hf_llm.evaluation.intervals import wilson_interval

UNKNOWN = "unknown"


@dataclass(frozen=True)
class BenchmarkScore:
    """One score of one benchmark, as results.json has it, with what stands beside it."""

    benchmark: str
    """Its name, or that of a group of tasks."""
    score: Score
    settings: dict[str, Any]
    """Shots, prompt format, limit, as the benchmark says them; of a group, how many `tasks` were run."""
    overlap: dict[str, Any]
    """The documents whose text the model was trained on; empty where nobody looked."""
    clean: Score | None
    """The same score on the other documents; None where that is not known, or all overlap."""

    @property
    def title(self) -> str:
        """The benchmark and the metric: `hellaswag acc_norm, 5 shots`, `mmlu (4 of 57 tasks) acc`."""
        tasks = self.settings.get("tasks")
        shots = self.settings.get("shots")
        name = f"{self.benchmark} ({tasks} tasks)" if tasks else self.benchmark
        metric = f"{self.score.metric}, {shots} shots" if shots else self.score.metric
        return f"{name} {metric}"

    @property
    def value(self) -> str:
        """The value with its interval."""
        return self.score.format_value()

    @property
    def chance(self) -> str:
        """What a guess would have, and whether the score is not distinguishable from it."""
        if self.score.chance is None:
            return ""
        chance = self.score.format_number(self.score.chance)
        return f"{chance}, at chance" if self.score.is_at_chance else chance

    @property
    def overlap_text(self) -> str:
        """How many of the documents overlap with the training text, and the score without them."""
        share = self.overlap.get("share")
        documents = len(self.overlap.get("documents", []))
        if share is None and not documents:
            return UNKNOWN
        if not documents:
            return "none"
        without = f"; without them {self.clean.format_value()}" if self.clean else ""
        at_least = "at least " if share is None else ""
        return f"{at_least}{documents / self.overlap['all_documents']:.1%} of the documents{without}"


def list_benchmark_scores(scores: Mapping[str, Any], only_primary: bool = False) -> list[BenchmarkScore]:
    """List the benchmark scores of one model in results.json, those that were run."""
    rows = []
    for name, result in scores.get("benchmarks", {}).items():
        clean = {entry["metric"]: read_score(entry) for entry in result.get("clean_scores", [])}
        for entry in result["scores"]:
            score = read_score(entry)
            if score.is_primary or not only_primary:
                overlap = result.get("overlap", {})
                rows.append(BenchmarkScore(name, score, result["settings"], overlap, clean.get(score.metric)))
    return rows


def list_group_scores(scores: Mapping[str, Any]) -> list[BenchmarkScore]:
    """List one score for each group of tasks, such as `mmlu`, by the metric that its tasks have in common: the mean
    over all their documents."""
    members: dict[tuple[str, str], list[Score]] = {}
    overlaps: dict[tuple[str, str], list[dict[str, Any]]] = {}
    tasks: dict[str, int] = {}
    for result in scores.get("benchmarks", {}).values():
        group = result.get("group")
        if not group:
            continue
        tasks[group] = tasks.get(group, 0) + 1
        for score in map(read_score, result["scores"]):
            if score.is_primary:
                members.setdefault((group, score.metric), []).append(score)
                overlaps.setdefault((group, score.metric), []).append(result.get("overlap", {}))

    rows = []
    for (group, metric), parts in members.items():
        weights = [part.documents for part in parts]
        documents = sum(weights)
        value = sum(part.value * weight for part, weight in zip(parts, weights, strict=True)) / documents
        has_chance = all(part.chance is not None for part in parts)
        chance = sum((part.chance or 0) * weight for part, weight in zip(parts, weights, strict=True)) / documents
        low, high = wilson_interval(value * documents, documents) if 0 <= value <= 1 else (None, None)
        score = Score(
            metric=metric,
            value=value,
            documents=documents,
            low=low,
            high=high,
            chance=chance if has_chance else None,
            better=parts[0].better,
            number_format=parts[0].number_format,
            is_primary=True,
        )
        settings = {"tasks": f"{len(parts)} of {tasks[group]}"}
        overlap = _join_overlaps(overlaps[group, metric])
        rows.append(BenchmarkScore(group, score, settings, overlap, None))
    return rows


def list_shown_scores(scores: Mapping[str, Any]) -> list[BenchmarkScore]:
    """List what a table shows of one model: the primary score of each benchmark, then one score for each group."""
    return [*list_benchmark_scores(scores, only_primary=True), *list_group_scores(scores)]


def _join_overlaps(overlaps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the overlap of several benchmarks together; its share is None where that of one is not known."""
    if not all(overlaps):
        return {}
    documents = [name for overlap in overlaps for name in overlap["documents"]]
    all_documents = sum(overlap["all_documents"] for overlap in overlaps)
    is_known = all(overlap["share"] is not None for overlap in overlaps)
    share = len(documents) / all_documents if is_known else None
    return {"documents": documents, "all_documents": all_documents, "share": share}


def list_not_run(scores: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the benchmarks of one model that were not run, each with the reason."""
    for name, result in scores.get("benchmarks", {}).items():
        if result.get("not_run"):
            yield name, result["not_run"]


def read_score(entry: Mapping[str, Any]) -> Score:
    """Read a score as results.json has it."""
    known = {field.name for field in fields(Score)}
    return Score(**{key: value for key, value in entry.items() if key in known})
