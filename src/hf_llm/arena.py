"""Collect human preferences: people vote, blind, on which of two models answers better; votes become a report and data.

    python -m hf_llm.arena runs/quickstart/sft runs/quickstart/dpo
    python -m hf_llm.arena runs/quickstart/sft runs/quickstart/dpo --terminal --annotator Ada
    python -m hf_llm.arena answers.jsonl --port 8001
    python -m hf_llm.arena --votes runs/quickstart/judging/sft-dpo.sqlite --report --export preferences.jsonl

Takes two models or more (folders or Hub ids), or one file of answers: rows of `prompt` and one text under each model's
name. Votes are kept in runs/<name>/judging/<models>.sqlite; the same command resumes. The answers are generated while
people vote; --prepare generates all of them first.
"""

import argparse
from pathlib import Path
from typing import Any

from hf_llm.core.command_line import CommandParser
from hf_llm.core.errors import UserError, command
from hf_llm.core.interrupts import accept_interrupts
from hf_llm.human_eval.answers import BackgroundGeneration, generate_missing_answers
from hf_llm.human_eval.comparison_plan import (
    TABULAR_SUFFIXES,
    ComparisonPlan,
    collect_held_out_prompts,
    describe_models,
    draw_pairs,
    plan_from_answers_file,
    read_prompts_file,
)
from hf_llm.human_eval.export_preferences import export_preferences, format_counts
from hf_llm.human_eval.report import format_results, report_command, write_report
from hf_llm.human_eval.server import ArenaServer
from hf_llm.human_eval.terminal_ui import vote_in_terminal
from hf_llm.human_eval.votes import VoteDatabase, create_database, normalize_annotator_name
from hf_llm.inference.sampling_arguments import add_sampling_arguments, read_sampling_arguments

DEFAULT_SEED = 42


@command
def main(argv: list[str] | None = None) -> None:
    arguments = build_parser().parse_args(argv)
    if arguments.seed is None:
        arguments.seed = DEFAULT_SEED

    with open_database(arguments) as database:
        if arguments.report:
            report_votes(database)
        if arguments.export:
            export_votes(database, arguments.export)
        if arguments.report or arguments.export:
            return

        if arguments.prepare:
            prepare_answers(database)
        else:
            collect_votes(database, arguments)


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = CommandParser(description=__doc__)
    parser.add_argument("models", nargs="*", help="model folders or Hub ids, or one file of answers")
    parser.add_argument("--votes", type=Path, help="the SQLite file (runs/<name>/judging/<models>.sqlite)")
    parser.add_argument("--prompts", type=Path, help="a prompt on each line, or rows (the run's held-out prompts)")
    parser.add_argument("--take", type=int, default=200, help="the largest number of prompts (%(default)s)")
    parser.add_argument("--annotator", help="who votes; the page asks for a name where none is given")
    parser.add_argument("--terminal", action="store_true", help="vote in this terminal instead of the browser")
    parser.add_argument(
        "--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, by the address that is printed"
    )
    parser.add_argument("--port", type=int, default=8000, help="of the page (%(default)s)")
    parser.add_argument(
        "--prepare", action="store_true", help="only generate the answers, one model in memory at a time"
    )
    parser.add_argument("--report", action="store_true", help="write a report on the votes beside them, HTML and JSON")
    parser.add_argument("--export", type=Path, help="write the preferences to this .jsonl, ready for dpo and reward")
    add_sampling_arguments(parser)
    return parser


def open_database(arguments: argparse.Namespace) -> VoteDatabase:
    """Open the file of votes, or create it for the comparison that the arguments name.

    Raises UserError where the file holds another comparison.
    """
    if arguments.take < 1:
        raise UserError(f"--take: {arguments.take} is less than one prompt")
    if not arguments.models:
        if not arguments.votes:
            raise UserError("name two models, a file of answers or, with --votes, a comparison to resume")
        return VoteDatabase(arguments.votes)

    path = arguments.votes or default_database_path(arguments.models)
    if not path.exists():
        create_database(path, plan_comparison(arguments))
    database = VoteDatabase(path)
    check_same_comparison(database, arguments)
    return database


def default_database_path(models: list[str]) -> Path:
    """Return `runs/<name>/judging/<models>.sqlite` for models of one run, otherwise `<models>.sqlite` here."""
    names = []
    for model in models:
        path = Path(model)
        names.append(path.stem if is_answers_file(model) else path.name)
    file_name = "-".join(names) + ".sqlite"

    folders = {Path(model).parent for model in models}
    if len(folders) == 1:
        run = folders.pop()
        if run.parent.name == "runs":
            return run / "judging" / file_name
    return Path(file_name)


def is_answers_file(argument: str) -> bool:
    """Whether an argument names a file of answers."""
    return Path(argument).suffix in TABULAR_SUFFIXES


def plan_comparison(arguments: argparse.Namespace) -> ComparisonPlan:
    """Plan the comparison that the arguments name."""
    if any(is_answers_file(model) for model in arguments.models):
        if len(arguments.models) > 1:
            raise UserError("one file holds the answers of all models: give no other argument beside it")
        return plan_from_answers_file(Path(arguments.models[0]), arguments.seed, arguments.take)

    models = describe_requested_models(arguments)
    if arguments.prompts:
        prompts = read_prompts_file(arguments.prompts, arguments.take)
    else:
        prompts = collect_held_out_prompts(arguments.models, arguments.take)
    pairs = draw_pairs(len(prompts), list(models), arguments.seed)
    return ComparisonPlan(models, prompts, pairs, arguments.seed)


def describe_requested_models(arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Return what makes the answers of the models that the arguments name."""
    return describe_models(
        arguments.models, arguments.seed, arguments.max_new_tokens, read_sampling_arguments(arguments)
    )


def check_same_comparison(database: VoteDatabase, arguments: argparse.Namespace) -> None:
    """Raise UserError where the stored answers were made otherwise than the arguments ask for."""
    if is_answers_file(arguments.models[0]):
        answers_file = Path(arguments.models[0])
        requested = plan_from_answers_file(answers_file, database.seed, arguments.take).models
    else:
        requested = describe_requested_models(arguments)

    remedy = "resume it with --votes alone, or name another file with --votes"
    stored = database.read_models()
    for name in sorted({*stored, *requested}):
        if stored.get(name) != requested.get(name):
            difference = describe_difference(name, stored.get(name), requested.get(name))
            raise UserError(f"{database.path}: {difference}; {remedy}")
    if arguments.prompts and read_prompts_file(arguments.prompts, arguments.take) != database.read_prompts():
        raise UserError(f"{database.path} was made with other prompts than {arguments.prompts}; {remedy}")


def describe_difference(name: str, stored: dict | None, requested: dict | None) -> str:
    """Say how a model's stored answers differ from those that are asked for."""
    if stored is None:
        return f"{name} is not one of its models"
    if requested is None:
        return f"{name} is one of its models"
    changed = next(key for key in {**stored, **requested} if stored.get(key) != requested.get(key))
    return (
        f"the answers of {name} were written with another {changed}: "
        f"it was {stored.get(changed)} and is {requested.get(changed)}"
    )


def report_votes(database: VoteDatabase) -> None:
    """Write the report on the votes so far and print it in short."""
    page, results = write_report(database)
    print("\n".join([*format_results(results), str(page)]))


def export_votes(database: VoteDatabase, path: Path) -> None:
    """Write the preferences of the votes so far as training data."""
    count, dropped = export_preferences(database, path)
    reasons = format_counts(dropped)
    note = f"; dropped: {reasons}" if reasons else ""
    print(f"{path}: {count} preferences{note}")


def prepare_answers(database: VoteDatabase) -> None:
    """Generate every missing answer."""
    for remaining in generate_missing_answers(database):
        print(f"{remaining} answers to generate", flush=True)
    print(f"{database.path}: every answer is there")


def collect_votes(database: VoteDatabase, arguments: argparse.Namespace) -> None:
    """Show pairs in the browser or the terminal until the annotator leaves; generate answers meanwhile."""
    accept_interrupts()
    annotator = None
    if arguments.annotator is not None:
        try:
            annotator = normalize_annotator_name(arguments.annotator)
        except ValueError as error:
            raise UserError(f"--annotator: {error}") from error
    if arguments.terminal and not annotator:
        raise UserError("--terminal: say who votes with --annotator NAME")

    with BackgroundGeneration(database) as generation:
        if arguments.terminal:
            vote_in_terminal(database, annotator, lambda: generation.problem)
            return
        server = ArenaServer(database, arguments.host, arguments.port, lambda: generation.problem, annotator)
        server.run(f"votes are kept in {database.path}; Ctrl-C ends")
        if database.list_annotators():
            print(f"Next: {report_command(database)}")
    if generation.problem:
        raise UserError(generation.problem)


if __name__ == "__main__":
    main()
