"""One task of the harness as a benchmark: its documents scored batch by batch, its metrics with interval and chance."""

import inspect
import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import numpy as np

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError
from hf_llm.core.manifest import digest_of, file_digest
from hf_llm.core.progress import open_progress_bar
from hf_llm.evaluation.benchmark import Benchmark, NotRunError, Score, TaskSettings, score_means, score_shares
from hf_llm.evaluation.harness.local_data import DataNeed, find_data_files, read_local_data, shared_beginning
from hf_llm.evaluation.harness.task_files import (
    Config,
    FunctionReference,
    TaskFile,
    harness_folder,
    resolve_functions,
)
from hf_llm.evaluation.intervals import draw_resamples, percentile_interval

if TYPE_CHECKING:
    from hf_llm.evaluation.evaluated_model import EvaluatedModel
    from hf_llm.evaluation.harness.scoring import SharedPrefixLM
    from hf_llm.evaluation.journal import Journal

METHOD_VERSION = 1  # of how documents are scored here; another one scores them again

# The seeds of the harness: of `random`, which some tasks shuffle choices with, of numpy and torch, and of the shots.
RANDOM_SEED = 0
OTHER_SEED = 1234

SLOW_RESAMPLES = 200  # for the interval of a metric that is not a mean, which has to be computed again for each
DOCUMENTS_PER_BATCH = 16  # of tasks that ask for several kinds of requests
MAX_NAMED_DOCUMENTS = 3  # in a sentence about documents that are not scored

# Metrics of multiple choice for which guessing has a known value.
ACCURACIES = {"acc", "acc_norm", "acc_bytes", "exact_match"}

_language_models: "WeakKeyDictionary[EvaluatedModel, SharedPrefixLM]" = WeakKeyDictionary()


class TaskBenchmark(Benchmark):
    """A task of the harness, from the Hub or from local files."""

    def __init__(
        self,
        source: TaskFile,
        task: TaskSettings,
        task_data: Path | None,
        prompt_format: Literal["plain", "chat"],
        name: str,
        group: str = "",
    ):
        self.source = source
        self.name = name
        self.group = group
        self.limit = task.limit
        self.gen_kwargs = task.gen_kwargs
        self.is_chat = prompt_format == "chat"
        self.batch_size: int | None = None
        """The most documents of a batch; None for as many as the device takes."""
        self.config = source.read_config()

        self.shots = choose_shots(source.name, self.config, task.shots)
        self.need = describe_need(source.name, self.config, self.shots)
        self.files: dict[Path, str] | None = None
        self._refusal = find_refusal(source.name, self.config)
        try:
            self.files = find_data_files(self.need, task.data, task_data)
        except NotRunError as error:
            self._refusal = self._refusal or str(error)
        if self.gen_kwargs and self.config.get("output_type", "generate_until") != "generate_until":
            print_main(f"{name}: gen_kwargs change nothing, since no text is generated")

        self.settings: dict[str, Any] = {
            "shots": self.shots,
            "prompt_format": prompt_format,
            "limit": self.limit,
            "rows": self._describe_rows(),
        }
        if self.gen_kwargs:
            self.settings["gen_kwargs"] = self.gen_kwargs

    # ---- what it is

    def identify(self) -> dict[str, Any]:
        """Return everything but the model that its scores depend on.

        Of a Hub data set that is its id, not its revision: a set that has changed there is not noticed. Raises
        NotRunError where it cannot be run.
        """
        self._check_runnable()
        config, functions = describe_config(self.config)
        return {
            "method": METHOD_VERSION,
            "lm_eval": version("lm_eval"),
            "task": self.source.name,
            "config": digest_of(config),
            "functions": functions,
            "rows": self._identify_rows(),
            "shots": self.shots,
            "limit": self.limit,
            "prompt_format": self.settings["prompt_format"],
            "gen_kwargs": self.gen_kwargs,
        }

    def read_texts(self) -> Iterator[tuple[str, list[str]]]:
        """Yield the id of each document with its question and its answer."""
        with compiled_templates():
            texts = []
            for number in range(self.num_documents):
                document = self.documents[number]
                texts.append((str(number), [self._read_question(document), self._read_answer(document)]))
        yield from texts

    def _check_runnable(self) -> None:
        if self._refusal:
            raise NotRunError(self._refusal)

    def _describe_rows(self) -> str:
        if self.files:
            return ", ".join(str(path) for path in self.files)
        subset = f" ({self.need.name})" if self.need.name else ""
        return f"Hub: {self.need.path}{subset}"

    def _identify_rows(self) -> Any:
        if not self.files:
            return {"hub": self.need.path, "name": self.need.name, "kwargs": str(self.config.get("dataset_kwargs"))}
        return [[path.name, split, file_digest(path)] for path, split in self.files.items()]

    # ---- its documents

    @cached_property
    def task(self) -> Any:
        """The harness's task with its rows. Raises NotRunError where the rows cannot be had."""
        self._check_runnable()
        dataset = None
        if self.files:
            data = read_local_data(self.need, self.files)
            for problem in data.problems:
                print_main(f"{self.name}: {problem}")
            dataset = make_dataset(self.name, data.splits)
        with fixed_seeds(), _quiet_datasets():
            task = build_task(self.name, self.config, self.need, dataset)
        if self.gen_kwargs and task.get_config("output_type") == "generate_until":
            task.set_config(key="generation_kwargs", value=dict(self.gen_kwargs), update=True)
        task.set_config(key="num_fewshot", value=self.shots)
        task.set_fewshot_seed(seed=OTHER_SEED)
        return task

    @cached_property
    def documents(self) -> Any:
        """All documents of the split that is scored."""
        documents = getattr(self.task, "task_docs", None)
        return self.task.eval_docs if documents is None else documents

    @property
    def num_documents(self) -> int:
        """How many of them are scored."""
        return min(len(self.documents), self.limit or len(self.documents))

    def build_requests(self, lm: "SharedPrefixLM", chosen: Sequence[str]) -> dict[int, list[Any]]:
        """Return the requests of the chosen documents, by number, as the harness makes them."""
        task = self.task
        template = lm.apply_chat_template if self.is_chat else None
        config_kwargs = {"apply_chat_template": self.is_chat, "chat_template": template}
        numbers = sorted(int(name) for name in chosen)
        wanted = set(numbers)
        # Shots are drawn for one document after the other, so those of the others are drawn too.
        draws_shots = self.shots > 0 and type(getattr(task, "sampler", None)).__name__ != "FirstNSampler"
        task.set_fewshot_seed(seed=OTHER_SEED)

        requests = {}
        for number in range(self.num_documents) if draws_shots else numbers:
            document = self.documents[number]
            context = task.fewshot_context(
                document,
                num_fewshot=self.shots,
                system_instruction=None,
                fewshot_as_multiturn=self.is_chat,
                gen_prefix=task.doc_to_prefix(document),
                **config_kwargs,
            )
            if number not in wanted:
                continue
            made = task.construct_requests(
                doc=document,
                ctx=context,
                metadata=(self.source.name, number, task.get_config("repeats") or 1),
                **config_kwargs,
            )
            requests[number] = made if isinstance(made, list) else [made]
        return requests

    # ---- scoring

    def score_documents(self, model: "EvaluatedModel", journal: "Journal") -> None:
        """Score the documents that the journal lacks, batch by batch. Raises NotRunError where that cannot be done."""
        self._check_runnable()
        if self.is_chat and model.tokenizer.chat_template is None:
            raise NotRunError(f"{self.name} is asked for with a chat template, and {model.path} does not have one")
        chosen = journal.select_documents(str(number) for number in range(self.num_documents))
        if not chosen:
            return
        lm = load_language_model(model)
        lm.documents_per_batch = self.batch_size

        with fixed_seeds(), compiled_templates():
            try:
                requests = self.build_requests(lm, chosen)
            except Exception as error:
                if self.shots and isinstance(error, AssertionError | ValueError):
                    raise NotRunError(f"{self.name}: shots: {self.shots} cannot be drawn: {error}") from error
                raise explain_bad_rows(self.name, error, self.files) from error
            total = len(requests)
            with open_progress_bar(total=total, desc=self.name, leave=False) as bar:
                for batch in self._respond(lm, requests):
                    journal.append(batch)
                    bar.update(len(batch))

    def _respond(self, lm: "SharedPrefixLM", requests: dict[int, list[Any]]) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of one batch of documents after the other."""
        kinds = {request.request_type for of_document in requests.values() for request in of_document}
        if kinds == {"loglikelihood"}:
            yield from self._score_choices(lm, requests)
        elif kinds == {"generate_until"} and all(len(of_document) == 1 for of_document in requests.values()):
            yield from self._generate(lm, requests)
        else:
            yield from self._respond_to_mixture(lm, requests)

    def _score_choices(self, lm: "SharedPrefixLM", requests: dict[int, list[Any]]) -> Iterator[list[dict[str, Any]]]:
        pairs = [request.args[:2] for of_document in requests.values() for request in of_document]
        sequences = iter(lm.encode_pairs(pairs))
        documents = {
            number: list(itertools.islice(sequences, len(of_document))) for number, of_document in requests.items()
        }
        problems = {
            number: next((choice.problem for choice in choices if choice.problem), "")
            for number, choices in documents.items()
        }
        unscored = [number for number, problem in problems.items() if problem]
        if unscored:
            yield [self._describe_unscored(number, requests[number], problems[number]) for number in unscored]

        numbers = [number for number, problem in problems.items() if not problem]
        choices = [documents[number] for number in numbers]
        plan = lm.plan(choices)
        for batch in plan.batches:
            rows = []
            for place, scores in zip(batch, lm.score_documents(choices, plan, batch), strict=True):
                number = numbers[place]
                for request, score in zip(requests[number], scores, strict=True):
                    request.resps.append(score)
                is_truncated = any(choice.is_truncated for choice in choices[place])
                rows.append((number, is_truncated))
            yield self._make_rows(rows, requests)

    def _generate(self, lm: "SharedPrefixLM", requests: dict[int, list[Any]]) -> Iterator[list[dict[str, Any]]]:
        numbers = list(requests)
        prompts = [requests[number][0] for number in numbers]
        for batch in lm.plan_generation(prompts):
            is_truncated = dict.fromkeys(batch, False)
            for draw in range(prompts[batch[0]].repeats):
                for place, completion in zip(batch, lm.generate_batch(prompts, batch, draw), strict=True):
                    prompts[place].resps.append(completion.text)
                    is_truncated[place] |= completion.is_truncated
            yield self._make_rows([(numbers[place], is_truncated[place]) for place in batch], requests)

    def _respond_to_mixture(
        self, lm: "SharedPrefixLM", requests: dict[int, list[Any]]
    ) -> Iterator[list[dict[str, Any]]]:
        """Answer documents with whole texts to score, or with requests of several kinds."""
        size = self.batch_size or DOCUMENTS_PER_BATCH
        for start in range(0, len(requests), size):
            numbers = list(requests)[start : start + size]
            by_kind: dict[str, list[Any]] = {}
            for number in numbers:
                for request in requests[number]:
                    by_kind.setdefault(request.request_type, []).extend([request] * request.repeats)
            for kind, of_kind in by_kind.items():
                for request, response in zip(of_kind, getattr(lm, kind)(of_kind), strict=True):
                    request.resps.append(response)
            yield self._make_rows([(number, False) for number in numbers], requests)

    def _make_rows(self, scored: list[tuple[int, bool]], requests: dict[int, list[Any]]) -> list[dict[str, Any]]:
        """Let the task's filters and metrics make rows of the responses of a batch."""
        task = self.task
        task._instances = [request for number, _ in scored for request in requests[number]]
        task.apply_filters()
        rows = []
        for number, is_truncated in scored:
            document = self.documents[number]
            of_document = requests[number]
            metrics = {}
            for filter_name in of_document[0].filtered_resps:
                responses = [request.filtered_resps[filter_name] for request in of_document]
                for metric, value in task.process_results(document, responses).items():
                    metrics[f"{metric},{filter_name}"] = to_plain_value(value)
            row = {
                "id": str(number),
                **self._describe_responses(document, of_document),
                "scores": {
                    name_metric(key): float(value) for key, value in metrics.items() if isinstance(value, int | float)
                },
                "metrics": metrics,
            }
            if is_truncated:
                row["truncated"] = True
            rows.append(row)
        return rows

    def _describe_unscored(self, number: int, requests: list[Any], problem: str) -> dict[str, Any]:
        described = self._describe_responses(self.documents[number], requests)
        return {"id": str(number), **described, "scores": {}, "metrics": {}, "problem": problem}

    def _describe_responses(self, document: Any, requests: list[Any]) -> dict[str, Any]:
        """Return prompt, response and target of a document, with the log-likelihoods of its choices."""
        first = requests[0]
        if first.request_type != "loglikelihood":
            prompt, target = first.args[0], self.task.doc_to_target(document)
            if first.request_type == "loglikelihood_rolling":
                return {"prompt": "", "response": "", "target": prompt, "log_likelihoods": to_plain_value(first.resps)}
            responses = [str(response) for response in first.resps]
            response: Any = responses if len(responses) > 1 else "".join(responses)
            return {"prompt": prompt, "response": response, "target": to_plain_value(target)}

        prompt = first.args[0]
        for request in requests[1:]:
            prompt = shared_beginning(prompt, request.args[0])
        options = [request.args[0][len(prompt) :] + request.args[1] for request in requests]
        scores = [request.resps[-1] for request in requests if request.resps]
        log_likelihoods = [float(score) for score, _ in scores]
        described: dict[str, Any] = {"prompt": prompt, "options": options, "log_likelihoods": log_likelihoods}
        if len(requests) == 1:
            is_greedy = bool(scores and scores[0][1])
            return {**described, "response": options[0] if is_greedy else "", "target": options[0]}

        right = self._find_right_choices(document)
        described["choices"] = self._count_choices(document, len(options))
        described["right"] = right
        best = int(np.argmax(log_likelihoods[: described["choices"]])) if scores else None
        described["response"] = options[best] if best is not None else ""
        described["target"] = options[right[0]] if right else ""
        return described

    # ---- documents of multiple choice

    def _count_choices(self, document: Any, num_requests: int) -> int:
        choices = self.task.doc_to_choice(document) if self.config.get("doc_to_choice") is not None else None
        return len(choices) if choices else num_requests

    def _find_right_choices(self, document: Any) -> list[int]:
        """Return the places of the right choices; none where the task does not say."""
        # TruthfulQA's mc2: several choices are right, which only the task's metric knows.
        targets = document.get("mc2_targets") if isinstance(document, dict) else None
        if targets and "mc2_targets" in str(self.config.get("doc_to_choice")):
            return [place for place, label in enumerate(targets["labels"]) if label]

        # Where the choices are contexts (WinoGrande), the task's text says which of them is right.
        has_contexts = bool(getattr(self.task, "multiple_input", 0))
        right = self.task.doc_to_text(document) if has_contexts else self.task.doc_to_target(document)
        choices = []
        if self.config.get("doc_to_choice") is not None:
            choices = self.task.doc_to_choice(document)

        # A target is a place among the choices, or the choice itself.
        places = []
        for target in right if isinstance(right, list) else [right]:
            is_choice = isinstance(target, str) and target in choices
            place = choices.index(target) if is_choice else target
            if isinstance(place, int) and 0 <= place < len(choices):
                places.append(place)
        return places

    def _read_question(self, document: Any) -> str:
        """Return what a document asks, without the shots and the words around it where the task tells them apart."""
        from lm_eval import utils

        task = self.task
        query = task.get_config("doc_to_decontamination_query")
        if isinstance(query, str):  # the harness's own method fails for a template
            return str(document[query]) if query in document else utils.apply_template(query, document)
        if getattr(task, "multiple_input", 0):
            return "\n".join(task.doc_to_choice(document))
        return str(task.doc_to_text(document))

    def _read_answer(self, document: Any) -> str:
        right = self._find_right_choices(document)
        if right:
            choices = self.task.doc_to_choice(document)
            return "\n".join(choices[place] for place in right)
        target = self.task.doc_to_target(document)
        return "\n".join(map(str, target)) if isinstance(target, list) else str(target)

    # ---- scores

    def summarize(self, rows: list[dict[str, Any]]) -> list[Score]:
        """Return the scores of these rows by the task's own metrics, the primary first; none without a scored row."""
        scored = [row for row in rows if "problem" not in row]
        keys = list(dict.fromkeys(key for row in scored for key in row["metrics"]))
        preferred = [key for name in ("acc_norm", "acc") for key in keys if key.startswith(f"{name},")]
        primary = next(iter(preferred or keys), None)
        scores = []
        for key in sorted(keys, key=lambda key: key != primary):
            having = [row for row in scored if key in row["metrics"]]
            scores.append(replace(self._summarize_metric(key, having), is_primary=key == primary))
        return scores

    def describe_documents(self, rows: Iterable[dict[str, Any]]) -> list[str]:
        """Return a sentence about the documents of these rows that lost the beginning of their prompt, and one about
        those that could not be scored."""
        rows = list(rows)
        notes = []
        truncated = sum(bool(row.get("truncated")) for row in rows)
        if truncated:
            notes.append(
                f"{truncated:,} of {len(rows):,} documents are longer than the model reads and lost a beginning"
            )
        unscored = [row for row in rows if "problem" in row]
        if unscored:
            named = "; ".join(f"document {row['id']}: {row['problem']}" for row in unscored[:MAX_NAMED_DOCUMENTS])
            notes.append(f"{len(unscored):,} of {len(rows):,} documents are not scored: {named}")
        return notes

    def _summarize_metric(self, key: str, rows: list[dict[str, Any]]) -> Score:
        metric = key.rpartition(",")[0]
        name = name_metric(key)
        values = [row["metrics"][key] for row in rows]
        aggregate = self.task.aggregation().get(metric)
        is_mean = aggregate is None or aggregate.__name__ == "mean"
        better: Literal["higher", "lower"] = "higher" if self.task.higher_is_better().get(metric, True) else "lower"
        if is_mean and all(value in (0, 1) for value in values):
            if metric not in ACCURACIES:
                return score_shares(name, values)
            return self._add_chance(score_shares(name, values), rows)
        if is_mean and all(isinstance(value, int | float) for value in values):
            is_share = all(0 <= value <= 1 for value in values)
            score = score_means(name, values, better=better, number_format=".1%" if is_share else ".3f")
            return self._add_chance(score, rows) if metric in ACCURACIES else score

        assert aggregate is not None
        low, high = bootstrap_aggregate(aggregate, values)
        return Score(
            metric=name,
            value=float(aggregate(values)),
            documents=len(values),
            low=low,
            high=high,
            better=better,
            number_format=",.4g",
        )

    def _add_chance(self, score: Score, rows: list[dict[str, Any]]) -> Score:
        """Add what guessing would score: of each document the share of its choices that are right; and the share of the
        most frequent label, where labels are as many in each document and not always the same one."""
        if not all(row.get("right") and row.get("choices") for row in rows):
            return score
        chance = float(np.mean([len(row["right"]) / row["choices"] for row in rows]))
        labels = [row["right"][0] for row in rows if len(row["right"]) == 1]
        majority = None
        if len(labels) == len(rows) and len(set(labels)) > 1 and len({row["choices"] for row in rows}) == 1:
            majority = float(np.bincount(labels).max()) / len(labels)
        return replace(score, chance=chance, majority=majority)


# ---- the harness's task


def choose_shots(name: str, config: Config, asked: int | None) -> int:
    """Return the number of solved examples: what is asked for, unless the task's own file says none."""
    own = config.get("num_fewshot")
    if asked is None:
        return own or 0
    if own == 0 and asked:
        print_main(f"{name}: shots: {asked} is ignored, since the task says that it has none beside its own prompt")
        return 0
    return asked


def describe_need(name: str, config: Config, shots: int) -> DataNeed:
    """Return the rows that a task reads."""
    few_shot = config.get("fewshot_config") or {}
    shot_split = None
    if shots and not few_shot.get("samples"):
        splits = [few_shot.get("split"), config.get("fewshot_split"), config.get("training_split")]
        splits += [config.get("validation_split"), config.get("test_split")]
        shot_split = next((split for split in splits if split), None)
    return DataNeed(
        task=name,
        path=str(config.get("dataset_path") or name),
        name=config.get("dataset_name"),
        scored_split=config.get("test_split") or config.get("validation_split") or "test",
        shot_split=shot_split,
    )


def find_refusal(name: str, config: Config) -> str:
    """Return why a task cannot be run by us; nothing where it can."""
    if config.get("unsafe_code"):
        return f"{name} runs generated code in this process; humaneval and mbpp of hf_llm run it in a sandbox"
    if config.get("doc_to_image") or config.get("doc_to_audio"):
        return f"{name} shows the model images or sounds; only text is evaluated here"
    return ""


def build_task(name: str, config: Config, need: DataNeed, dataset: Any) -> Any:
    """Build the harness's task, with these rows or those of the Hub. Raises NotRunError where it cannot be built."""
    from lm_eval.api.task import ConfigurableTask

    try:
        config = resolve_functions(config)
    except ImportError as error:
        raise NotRunError(f"{name} needs a package that is not installed: {error.name or error}") from error
    metadata = config.get("metadata", {})
    config["metadata"] = metadata if isinstance(metadata, dict) else {"_metadata": metadata}
    task_class = config.get("class", ConfigurableTask)
    if dataset is not None:
        _forget_unused_splits(config, need)
        task_class = type(task_class.__name__, (task_class,), {"download": _take_dataset(dataset)})

    takes_config = "config" in inspect.signature(task_class.__init__).parameters
    try:
        return task_class(config=config) if takes_config else task_class()
    except Exception as error:
        if dataset is not None:
            raise explain_bad_rows(name, error, {}) from error
        if isinstance(error, OSError | ValueError | RuntimeError | ImportError):
            reason = " ".join(str(error).split())[:300]
            raise NotRunError(
                f"{name}: its rows ({need.path}) cannot be read from the Hub: {reason}. Without a network put them in "
                f"a folder {need.set_name}/ of evaluate.task_data, or name them by the task's `data`"
            ) from error
        raise


def explain_bad_rows(name: str, error: Exception, files: dict[Path, str] | None) -> Exception:
    """Return the NotRunError for rows that a task's templates cannot read, or the error where it is another one."""
    from jinja2 import UndefinedError

    where = f" in {next(iter(files))}" if files else ""
    if isinstance(error, KeyError):
        return NotRunError(f"{name} needs the column {error.args[0]!r}{where}, which its rows lack")
    if isinstance(error, UndefinedError):
        return NotRunError(f"{name} needs a column that its rows lack{where}: {error}")
    return error


def _forget_unused_splits(config: Config, need: DataNeed) -> None:
    """Take out of a task's config the splits that nobody reads: the harness looks into them in any case."""
    there = {need.scored_split, need.shot_split}
    for key in ("training_split", "validation_split", "test_split", "fewshot_split"):
        if config.get(key) not in there:
            config.pop(key, None)
    few_shot = config.get("fewshot_config")
    if isinstance(few_shot, dict) and few_shot.get("split") not in there:
        config["fewshot_config"] = {key: value for key, value in few_shot.items() if key != "split"}


def _take_dataset(dataset: Any) -> Callable:
    def download(self: Any, *arguments: Any, **keywords: Any) -> None:
        self.dataset = dataset

    return download


def make_dataset(name: str, splits: dict[str, list[dict[str, Any]]]) -> Any:
    """Return the rows as the `datasets` library has them. Raises NotRunError where a column has values of two kinds."""
    from datasets import Dataset, DatasetDict
    from pyarrow import ArrowException

    try:
        return DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()})
    except (ArrowException, TypeError) as error:
        raise NotRunError(f"{name}: a column of its rows holds values of different kinds: {error}") from error


def load_language_model(model: "EvaluatedModel") -> "SharedPrefixLM":
    """Return the harness's view of a model, once for all of its tasks. Raises NotRunError for a model that restores
    masked text, which continues none."""
    from hf_llm.evaluation.harness.scoring import SharedPrefixLM
    from hf_llm.model.load import find_objective
    from hf_llm.pipeline.model_types import MASKED

    if find_objective(model.model.config) == MASKED:
        raise NotRunError(f"{model.path} restores masked text; tasks of the harness need a model that continues text")
    if model not in _language_models:
        lm = SharedPrefixLM(model.model, model.tokenizer, rank=model.rank, world_size=model.world_size)
        _language_models[model] = lm
    return _language_models[model]


@contextmanager
def fixed_seeds() -> Iterator[None]:
    """Let the random states be those that the harness begins with, and as they were afterwards."""
    import torch

    python_state = random.getstate()
    numpy_state = np.random.get_state()
    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(OTHER_SEED)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)


@contextmanager
def compiled_templates() -> Iterator[None]:
    """Let the harness compile a template once, not for every document: a millisecond each, and 8 for a document of MMLU
    with its shots."""
    from lm_eval import utils

    compile_template = cache(utils.env.from_string)
    original = utils.apply_template

    def apply_template(template: str, document: dict[str, Any]) -> str:
        return compile_template(template).render(**document)

    utils.apply_template = apply_template
    try:
        yield
    finally:
        utils.apply_template = original


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """Show no bar for each small pass over a task's rows."""
    from datasets import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    was_disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was_disabled:
            enable_progress_bars()


# ---- plain values


def describe_config(config: Config) -> tuple[Any, dict[str, str]]:
    """Return a task's config as plain values, and the digests of the modules of functions that do not come with
    lm_eval."""
    functions: dict[str, str] = {}

    def describe(value: Any) -> Any:
        if isinstance(value, FunctionReference):
            module = value.folder / f"{value.name.rpartition('.')[0].replace('.', '/')}.py"
            if module.exists() and not module.is_relative_to(harness_folder()):
                functions[value.name] = file_digest(module)
            return f"!function {value.name}"
        if isinstance(value, dict):
            return {str(key): describe(item) for key, item in value.items()}
        if isinstance(value, list):
            return [describe(item) for item in value]
        return value

    return describe(config), functions


def to_plain_value(value: Any) -> Any:
    """Return a value that JSON can hold: numpy's numbers as Python's, tuples as lists."""
    if isinstance(value, np.ndarray):
        return [to_plain_value(item) for item in value.tolist()]
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, list | tuple):
        return [to_plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain_value(item) for key, item in value.items()}
    if isinstance(value, bool | int | float | str) or value is None:
        return value
    raise UserError(f"a metric of a task gives {type(value).__name__}, which is not a plain value")


def name_metric(key: str) -> str:
    """Name a metric with its filter: `acc,none` is acc, `exact_match,strict-match` exact_match (strict-match)."""
    metric, _, filter_name = key.rpartition(",")
    return metric if filter_name == "none" else f"{metric} ({filter_name})"


def bootstrap_aggregate(aggregate: Callable, values: list[Any]) -> tuple[float | None, float | None]:
    """Return the 95% interval of a metric that has to be computed from all values, over resampled documents."""
    if len(values) < 10:
        return None, None
    draws = draw_resamples(len(values))[:SLOW_RESAMPLES].astype(int)
    resampled = [aggregate([values[place] for place in np.repeat(np.arange(len(values)), draw)]) for draw in draws]
    return percentile_interval(np.asarray(resampled, dtype=float)) or (None, None)
