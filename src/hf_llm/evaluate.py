"""Score the models of a run: text, questions, benchmarks, answers to the same prompts; makes runs/<name>/evaluation.

    python -m hf_llm.evaluate recipes/gpt125m.yaml
    python -m hf_llm.evaluate recipes/gpt125m.yaml '--evaluate.tasks=[hellaswag, arc_easy]' --evaluate.task_data=data
    python -m hf_llm.evaluate --model=Qwen/Qwen3-0.6B '--evaluate.tasks=[hellaswag]'     # any folder or Hub id
    accelerate launch -m hf_llm.evaluate recipes/gpt125m.yaml                            # on every GPU

Writes results.json: loss, perplexity and bits per byte of each model, by domain too, its answers, its scores with their
intervals, and what a token costs. What is measured already is kept: another task computes that task only.

Where `evaluate.gates` names bounds, what misses them is printed at the end, and the exit code is 3.
"""

import importlib
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_llm.core.console import is_main_process, print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import current_digest, read_manifest, write_json
from hf_llm.data.chat.loaders import ConversationSource, load_questions
from hf_llm.evaluation.benchmark import TaskSettings
from hf_llm.evaluation.domains import TextDomain, read_corpus_domains, read_domain, score_domain
from hf_llm.evaluation.evaluated_model import EvaluatedModel
from hf_llm.evaluation.gates import enforce_gates
from hf_llm.evaluation.questions import score_replies
from hf_llm.evaluation.report_scores import LOGS, Tracker, report_scores
from hf_llm.evaluation.score_store import ScoreStore
from hf_llm.evaluation.score_table import describe_models, format_benchmark_table, format_model_table
from hf_llm.evaluation.text_metrics.references import ReferenceSet
from hf_llm.pipeline.model_types import CAUSAL, MASKED
from hf_llm.pipeline.run import Run, licenses_of, read_run
from hf_llm.pipeline.stage_inputs import name_models
from hf_llm.pipeline.stages import LANGUAGE_MODELS, STAGES
from hf_llm.pipeline.tokens_folder import read_index
from hf_llm.preflight.before_work import check_before_work
from hf_llm.reporting.model_card import CARD_FILE, write_model_card
from hf_llm.tokenization.compare_tokenizers import check_shards_tokenizer
from hf_llm.training.sections import Objective

if TYPE_CHECKING:
    from hf_llm.evaluation.benchmark import Benchmark


PROMPTS = ["What does the function sorted do?", "What is a generator?", "Explain what an exception is."]
TOKENS_PER_BATCH = 8192
MODEL_OPTION = "--model"
MODEL_RECIPE = "evaluate_model"  # the shipped recipe of an evaluation of one model
BYTES_PER_TOKEN = 8  # more than a token stands for on average: how much text of a domain is read

Scores = dict[str, Any]  # one model's scores, as in results.json


@dataclass
class Evaluation:
    """The `evaluate` section."""

    tokens: int = 1 << 18
    """Tokens of the test split to predict; 0 for none, as where there is no text of the run."""
    text: str | None = None
    """A folder of tokens of another run, whose test split is scored instead of this run's."""
    domains: list[TextDomain] = field(default_factory=list)
    """Texts to score apart, besides the sources of the run's own corpus."""
    domain_tokens: int = 1 << 16
    """Tokens of each domain to predict; 0 to score no domain."""
    prompts: list[str] = field(default_factory=lambda: list(PROMPTS))
    """Prompts that each model answers."""
    questions: list[ConversationSource] = field(default_factory=list)
    """Rows of questions whose answers are known: a reply that holds the row's answer is right."""
    max_new_tokens: int = 64
    """Tokens of the longest answer."""
    models: list[str] | None = None
    """Folders or Hub ids to evaluate instead of this run's models."""
    tasks: list[str | TaskSettings] = field(default_factory=list)
    """Benchmarks, each by its name or with settings: every task and group of the Language Model Evaluation Harness, a
    YAML file of such a task, humaneval, mbpp, crows_pairs, winobias, bbq and toxicity (docs/evaluation.md)."""
    task_data: str | None = None
    """A folder with files of benchmarks, read where it has those of a task; what it lacks comes from the Hub."""
    references: list[ReferenceSet] = field(default_factory=list)
    """Files of prompts with good answers, or of finished texts with references: BLEU, ROUGE and chrF."""
    held_out_answers: bool = False
    """Whether to score answers to the rows that SFT holds out against the rows' own: BLEU, ROUGE and chrF."""
    run_generated_code: bool = False
    """Whether humaneval and mbpp may run the programs that a model writes, in a sandbox."""
    report_to: list[Tracker] = field(default_factory=list)
    """Where the scores are logged too: tensorboard, wandb."""
    speed: bool = True
    """Whether to measure the time of a token and the memory, on this machine."""
    gates: str | dict[str, Any] | None = None
    """Bounds that have to be met, else the command ends with exit code 3: a metric or task with its bound in quotes,
    such as `perplexity: "< 20"`, or `mission` (docs/evaluation.md)."""

    @property
    def task_settings(self) -> list[TaskSettings]:
        """The entries of `tasks`, names as settings too."""
        return [TaskSettings(name=task) if isinstance(task, str) else task for task in self.tasks]


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    evaluate: Evaluation = field(default_factory=Evaluation)
    """The test text, the prompts, the benchmarks and the models."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, expand_model_option(list(sys.argv[1:] if argv is None else argv)))
    check_before_work(run, "evaluation")
    check_requests(run, recipe.evaluate)
    evaluate_models(run, recipe)
    if is_main_process():
        enforce_gates(run.root, run.tree)


def evaluate_models(run: Run, recipe: Recipe) -> None:
    """Measure what is not measured yet, and write results.json and the manifest; nothing where that is complete."""
    section = recipe.evaluate
    models = list_models(run, section)
    text = {"tokens": section.text} if section.tokens else {}
    with run.open_stage("evaluation", recipe, {**text, **models}) as output:
        if output.is_complete:
            return

        rank, world_size = join_launch()
        questions = load_questions(section.questions) if section.questions else []
        results: dict[str, Any] = {
            "models": {},
            "samples": [{"prompt": prompt, "answers": {}} for prompt in section.prompts],
            "questions": [{**question, "replies": {}} for question in questions],
        }
        tokens = output.sources.get("tokens")
        store = ScoreStore(output.path)
        for name, path in models.items():
            model = EvaluatedModel(name, path, rank, world_size)
            scores: Scores = {"path": str(path)}
            if is_main_process():
                print_main(f"evaluating {path}")
                scores |= measure_model(model, section, store, tokens, find_corpus(tokens))
                add_answers(model, section, store, results["samples"], scores)
                add_questions(model, section, store, results["questions"], scores)
                if section.speed:
                    scores |= measure_speed_once(model, store)
            benchmarks = run_benchmarks(model, section, run, store)
            if benchmarks:
                scores["benchmarks"] = benchmarks
                scores |= describe_aggregate(benchmarks)
            results["models"][name] = {key: value for key, value in scores.items() if value != {}}
        if not is_main_process():
            return

        write_json(output.path / "results.json", results)
        print_main(format_model_table(results["models"]))
        benchmark_table = format_benchmark_table(results["models"])
        if benchmark_table:
            print_main(f"\n{benchmark_table}")
        headline = describe_models(results["models"])
        output.complete(headline, licenses_of(*models.values()), results=results["models"])
        update_model_cards(run, list(models.values()))
        if section.report_to:
            (output.path / LOGS).mkdir(exist_ok=True)
            report_scores(section.report_to, run.name, output.path, results["models"])


def expand_model_option(argv: list[str]) -> list[str]:
    """Replace `--model=<folder or Hub id>` by a recipe of that model alone: its name, its model, the text of its run.

    A command line without that option, or with a recipe before it, is returned as it is. Raises UserError where both
    are given, or the option has no value.
    """
    positions = [i for i, word in enumerate(argv) if word.partition("=")[0] == MODEL_OPTION]
    if not positions:
        return argv
    if not argv[0].startswith("-"):
        if argv[positions[0]].startswith(f"{MODEL_OPTION}={{"):
            return argv  # the `model` section of the recipe
        raise UserError(f"{MODEL_OPTION} stands instead of a recipe; with {argv[0]} write --evaluate.models=[...]")
    position = positions[0]
    _, equals, path = argv[position].partition("=")
    rest = argv[:position] + argv[position + 1 :]
    if not equals:
        path = rest.pop(position) if position < len(rest) else ""
    if not path:
        raise UserError(f"{MODEL_OPTION} names no model; write {MODEL_OPTION}=<folder or Hub id>")

    parts = Path(path).resolve().parts[-2:] if Path(path).exists() else path.split("/")[-1:]
    name = re.sub(r"[^\w.-]+", "-", "-".join(parts)).strip("-.") + "-evaluation"
    overrides = [f"--name={name}", f"--evaluate.models=[{path}]"]
    tokens = Path(path).parent / "tokens"
    if read_manifest(tokens) is not None:
        overrides += [f"--evaluate.text={tokens}", f"--evaluate.tokens={Evaluation.tokens}"]
    else:
        overrides.append("--evaluate.tokens=0")
    return [MODEL_RECIPE, *overrides, *rest]


def join_launch() -> tuple[int, int]:
    """Join the processes of this launch; return the number of this one and how many there are."""
    from hf_llm.core.distributed import join_processes

    return join_processes()


def find_corpus(tokens: Path | str | None) -> Path | None:
    """Return the corpus of several sources that the folder `tokens` was made from; None where it is not beside it, and
    for a corpus of one source, whose score is that of the whole test split."""
    if tokens is None:
        return None
    sources = set()
    for shard in read_index(Path(tokens))["splits"].get("test", []):
        sources.update(shard.get("sources", {}))
    corpus = Path(tokens).parent / "corpus"
    return corpus if len(sources) > 1 and read_manifest(corpus) is not None else None


def measure_model(
    model: EvaluatedModel, section: Evaluation, store: ScoreStore, tokens: Path | str | None, corpus: Path | None
) -> Scores:
    """Return how well a model predicts text: the test split in the folder `tokens`, and each domain apart."""
    objective = read_objective(model)
    scores: Scores = {"objective": objective.kind}
    if tokens is not None:
        identity = {
            "tokens": current_digest(Path(tokens)) or str(tokens),
            "count": section.tokens,
            "objective": asdict(objective),
        }
        measured = store.measure(
            model, "test split", identity, lambda: score_model(model, Path(tokens), section.tokens, objective)
        )
        scores |= without_seconds(measured)
    if objective.kind == CAUSAL and section.domain_tokens:
        scores["domains"] = measure_domains(model, section, store, corpus)
    return scores


def measure_domains(
    model: EvaluatedModel, section: Evaluation, store: ScoreStore, corpus: Path | None
) -> dict[str, Scores]:
    """Return the scores of a causal model on each domain: the sources of the corpus, and `evaluate.domains`."""
    scores = {}
    max_tokens = section.domain_tokens
    if corpus is not None:
        identity = {"corpus": current_digest(corpus), "tokens": max_tokens}

        def score_sources() -> Scores:
            domains = read_corpus_domains(corpus, max_tokens * BYTES_PER_TOKEN)
            return {"sources": {name: score_domain(model, texts, max_tokens) for name, texts in domains.items()}}

        scores |= store.measure(model, "sources of the corpus", identity, score_sources)["sources"]
    for domain in section.domains:
        identity = {"files": describe_files(domain.path), "column": domain.column, "tokens": max_tokens}
        measured = store.measure(
            model,
            f"domain {domain.name}",
            identity,
            lambda domain=domain: score_domain(model, read_domain(domain), max_tokens),
        )
        scores[domain.name] = without_seconds(measured)
    return scores


def add_answers(
    model: EvaluatedModel, section: Evaluation, store: ScoreStore, samples: list[dict[str, Any]], scores: Scores
) -> None:
    """Let a model answer the prompts, and add its answers to `samples`; the EOS rate goes to `scores`."""
    if not section.prompts:
        return
    replies = answer_once(model, "answers", section.prompts, section.max_new_tokens, store)
    for sample, reply in zip(samples, replies, strict=True):
        sample["answers"][model.name] = reply["text"]
    scores |= describe_endings(replies, section.max_new_tokens)


def add_questions(
    model: EvaluatedModel, section: Evaluation, store: ScoreStore, questions: list[dict[str, Any]], scores: Scores
) -> None:
    """Let a model answer the questions, add its replies to `questions`, and the share that is right to `scores`."""
    if not questions:
        return
    prompts = [question["prompt"] for question in questions]
    replies = answer_once(model, "questions", prompts, section.max_new_tokens, store)
    texts = [reply["text"] for reply in replies]
    for question, text in zip(questions, texts, strict=True):
        question["replies"][model.name] = text
    scores |= score_replies(texts, [question["answer"] for question in questions])
    scores |= describe_endings(replies, section.max_new_tokens)  # of more prompts than the samples have


def answer_once(
    model: EvaluatedModel, name: str, prompts: list[str], max_new_tokens: int, store: ScoreStore
) -> list[dict[str, Any]]:
    """Return a model's replies to prompts, as fields of `Reply`; they are generated where they are not kept."""

    def answer() -> Scores:
        from hf_llm.evaluation.replies import answer_prompts

        return {"replies": [asdict(reply) for reply in answer_prompts(model, prompts, max_new_tokens)]}

    return store.measure(model, name, {"prompts": prompts, "tokens": max_new_tokens}, answer)["replies"]


def describe_endings(replies: list[dict[str, Any]], max_new_tokens: int) -> Scores:
    """Return the EOS rate of replies: the share that has an end token; empty where replies do not end."""
    endings = [reply["has_ended"] for reply in replies if reply["has_ended"] is not None]
    if not endings:
        return {}
    return {"stop_rate": sum(endings) / len(endings), "stop_prompts": len(endings), "stop_limit": max_new_tokens}


def measure_speed_once(model: EvaluatedModel, store: ScoreStore) -> Scores:
    """Return what a token of a causal model costs on this machine, measured when it is first asked for."""
    if read_objective(model).kind != CAUSAL:
        return {}

    def measure() -> Scores:
        from hf_llm.evaluation.speed import measure_speed

        return measure_speed(model)

    return without_seconds(store.measure(model, "speed", {}, measure))


def run_benchmarks(model: EvaluatedModel, section: Evaluation, run: Run, store: ScoreStore) -> dict[str, Scores]:
    """Run every benchmark that the recipe asks for on one model; return their results by name."""
    if not asks_for_benchmarks(section):
        return {}
    from hf_llm.evaluation.benchmark import NotRunError
    from hf_llm.evaluation.run_benchmark import add_overlaps, describe_not_run, print_not_run, run_benchmark

    benchmarks = []
    results = {}
    for name, find in list_requests(section, run, model.is_chat):
        try:
            benchmarks += find()
        except NotRunError as error:
            results[name] = describe_not_run(str(error), {})
    for benchmark in benchmarks:
        results[benchmark.name] = run_benchmark(benchmark, model, store)
    if is_main_process():
        print_not_run(model.name, results)
        add_overlaps(benchmarks, results, model, store)
    return results


def list_requests(
    section: Evaluation, run: Run, is_chat: bool
) -> "Iterator[tuple[str, Callable[[], list[Benchmark]]]]":
    """Yield what the recipe asks for, by name, each with a function that returns its benchmarks.

    `is_chat` is whether the model to be evaluated is trained to chat. The functions load no model.
    """
    from hf_llm.evaluation.benchmark_families import find_benchmarks
    from hf_llm.evaluation.text_metrics.held_out_answers import NAME
    from hf_llm.evaluation.text_metrics.references import load_reference_benchmarks

    task_data = Path(section.task_data).expanduser() if section.task_data else None
    for task in section.task_settings:
        yield task.name, partial(find_benchmarks, task, task_data, section.run_generated_code, is_chat)
    if section.held_out_answers:
        yield NAME, partial(find_held_out_answers, run, is_chat)
    for position, references in enumerate(section.references):
        key = f"evaluate.references[{position}]"
        yield references.title, partial(load_reference_benchmarks, references, is_chat, key)


def check_requests(run: Run, section: Evaluation) -> None:
    """Raise UserError where nobody knows what the recipe asks for, or a package or a permission is missing that it
    needs: before an earlier evaluation is set aside. What its data lack is told by its results."""
    if not asks_for_benchmarks(section):
        return
    from hf_llm.evaluation.benchmark import NotRunError

    for _, find in list_requests(section, run, is_chat=False):
        with suppress(NotRunError):
            find()


def asks_for_benchmarks(section: Evaluation) -> bool:
    """Whether the recipe asks for more than text, answers and speed."""
    return bool(section.tasks or section.references or section.held_out_answers)


def find_held_out_answers(run: Run, is_chat: bool) -> "list[Benchmark]":
    """Return the benchmark of the rows that this run's SFT holds out."""
    from hf_llm.evaluation.benchmark import NotRunError
    from hf_llm.evaluation.text_metrics.held_out_answers import load_held_out_answers

    if not run.is_requested("sft"):
        raise NotRunError("the recipe has no sft section, which says what is held out")
    recipe = run.read(importlib.import_module(STAGES["sft"].module).Recipe)
    corpus = run.folder("corpus")
    benchmark = load_held_out_answers(
        recipe.sft.data,
        evaluation_share=recipe.sft.evaluation_share,
        seed=recipe.seed,
        allow_drop=recipe.sft.allow_drop,
        corpus=corpus if read_manifest(corpus) is not None else None,
        is_chat=is_chat,
    )
    return [benchmark]


def describe_aggregate(benchmarks: dict[str, Scores]) -> Scores:
    """Return the mean of a model's benchmarks centred on chance as `aggregate`; empty where none counts."""
    from hf_llm.evaluation.aggregate import centre_scores

    aggregate = centre_scores(benchmarks)
    if aggregate is None:
        return {}
    print_main(f"  {aggregate.describe()}")
    return {"aggregate": aggregate.to_json()}


def without_seconds(result: Scores) -> Scores:
    """Return a stored result without the time it took."""
    return {key: value for key, value in result.items() if key != "seconds"}


def describe_files(path: str) -> list[Any]:
    """Return what tells whether the files that a path names are the same: their names and digests."""
    from hf_llm.core.manifest import file_digest
    from hf_llm.data.files.file_formats import FORMATS, find_files

    files = find_files(path, FORMATS["text"] | FORMATS["rows"])
    return [[name, file_digest(file)] for file, name in files]


def update_model_cards(run: Run, models: list[Path | str]) -> None:
    """Write the cards of the run's models again, now with their test scores.

    A card on the Hub stays as it is; the command that replaces it is printed.
    """
    for model in models:
        folder = Path(model)
        manifest = read_manifest(folder)
        if manifest is None or folder.parent.resolve() != run.root.resolve():
            continue
        arguments = manifest["facts"].get("arguments", {})
        repository = arguments.get("hub_model_id") if arguments.get("push_to_hub") else None
        write_model_card(folder, repository)
        if repository:
            card = folder / CARD_FILE
            command = shlex.join(["hf", "upload", repository, str(card), CARD_FILE])
            print_main(f"{card} has the test scores now; {command}")


def list_models(run: Run, section: Evaluation) -> dict[str, Path | str]:
    """Return the models to evaluate, by short name: those the recipe lists, else every model this run makes."""
    if section.models is None:
        return {folder: run.ensure_stage(folder) for folder in LANGUAGE_MODELS if run.is_requested(folder)}
    return {name: run.resolve_source(model) for name, model in name_models(section.models).items()}


def read_objective(model: EvaluatedModel) -> Objective:
    """Return the objective of a model: with the settings of its training for ours, with the papers' for another."""
    from hf_llm.model.load import find_objective
    from hf_llm.training.objectives import fill_objective_defaults

    manifest = read_manifest(Path(model.path)) or {}
    settings = manifest.get("facts", {}).get("objective")
    if settings:
        return Objective(**settings)
    config = model.config
    return fill_objective_defaults(Objective(), find_objective(config), config.model_type)


def score_model(model: EvaluatedModel, tokens: Path, max_tokens: int, objective: Objective) -> Scores:
    """Score the model's objective on at most `max_tokens` tokens of the test split of the folder `tokens`.

    Raises UserError where the model's tokenizer is not the one that encoded the text.
    """
    from hf_llm.data.tokens.byte_lengths import token_byte_lengths
    from hf_llm.data.tokens.token_dataset import TokenWindows
    from hf_llm.evaluation.denoising import score_masked, score_spans
    from hf_llm.evaluation.perplexity import score_next_tokens

    tokenizer = model.tokenizer
    try:
        check_shards_tokenizer(tokens, tokenizer, "evaluate.models")
    except UserError as error:
        raise UserError(
            f"{error}\n  {model.path} has another tokenizer than the test text; evaluate it in a run of its own "
            "tokenizer (bits per byte compare across runs), or with --model="
        ) from None
    windows = TokenWindows(tokens, "test", model.context).limit_tokens(max_tokens)
    batch_size = max(1, TOKENS_PER_BATCH // model.context)
    if objective.kind == CAUSAL:
        windows.measure_bytes(token_byte_lengths(tokenizer))
        return score_next_tokens(model.model, windows, batch_size)
    corruption = objective.corruption(tokenizer, model.context)
    if objective.kind == MASKED:
        return score_masked(model.model, windows, corruption, batch_size)
    return score_spans(model.model, tokenizer, windows, corruption, batch_size)


if __name__ == "__main__":
    main()
