"""Let people say which of two models answers better, blind; makes runs/<name>/judging/<models>.sqlite, and of its votes
a preference data set and a report.

    python -m hf_llm.judge runs/quickstart/sft runs/quickstart/dpo
    python -m hf_llm.judge runs/quickstart/sft runs/quickstart/dpo --terminal --annotator Ada
    python -m hf_llm.judge answers.jsonl --port 8001
    python -m hf_llm.judge --votes runs/quickstart/judging/sft-dpo.sqlite --report --export preferences.jsonl

Two models or more (folders or Hub ids), or one file of answers: rows of `prompt` and one text under each model's name.
The same command goes on where it was left. The answers are written while people judge; --prepare writes them all first.
"""

import argparse
from pathlib import Path
from typing import Any

from hf_llm.core.errors import UserError, command
from hf_llm.human_eval import comparison_plan
from hf_llm.human_eval.answers import Background, make_answers
from hf_llm.human_eval.export_preferences import counted, export
from hf_llm.human_eval.report import lines, write_report
from hf_llm.human_eval.server import JudgingServer
from hf_llm.human_eval.terminal_ui import judge
from hf_llm.human_eval.votes import Votes, annotator_name, create_votes
from hf_llm.inference.sampling_arguments import add_sampling_arguments, sampling_of

SEED = 42


@command
def main(argv: list[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    with opened(arguments) as votes:
        if arguments.export or arguments.report:
            tell(votes, arguments)
        elif arguments.prepare:
            prepare(votes)
        else:
            ask(votes, arguments)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="model folders or Hub ids, or one file of answers")
    parser.add_argument("--votes", type=Path, help="the SQLite file (runs/<name>/judging/<models>.sqlite)")
    parser.add_argument("--prompts", type=Path, help="a line each, or rows (those the run kept out of training)")
    parser.add_argument("--take", type=int, default=200, help="at most so many prompts (%(default)s)")
    parser.add_argument("--annotator", help="who judges; the page asks where it is left out")
    parser.add_argument("--terminal", action="store_true", help="judge here instead of in the browser")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in, with the address that is printed")
    parser.add_argument("--port", type=int, default=8000, help="of the page (%(default)s)")
    parser.add_argument("--prepare", action="store_true", help="only write the answers, one model in memory at a time")
    parser.add_argument("--report", action="store_true", help="write what the votes say beside them, HTML and JSON")
    parser.add_argument("--export", type=Path, help="write the preferences to this .jsonl, ready for dpo and reward")
    add_sampling_arguments(parser)
    return parser


def opened(arguments: argparse.Namespace) -> Votes:
    """The votes file: found, or made of what the arguments name. UserError where it holds another comparison."""
    if arguments.take < 1:
        raise UserError(f"--take: {arguments.take} is less than one prompt")
    if not arguments.models:
        if not arguments.votes:
            raise UserError("name two models, a file of answers or, with --votes, a comparison that was begun")
        return Votes(arguments.votes)
    path = arguments.votes or usual_place(arguments.models)
    if not path.exists():
        create_votes(path, plan_of(arguments))
    votes = Votes(path)
    check_same(votes, arguments)
    return votes


def usual_place(models: list[str]) -> Path:
    """`runs/<name>/judging/<models>.sqlite` for models of a run, otherwise `<models>.sqlite` here."""
    folders = {Path(model).parent for model in models}
    name = "-".join(Path(model).stem if is_file(model) else Path(model).name for model in models)
    run = folders.pop() if len(folders) == 1 else Path()
    return run / "judging" / f"{name}.sqlite" if run.parent.name == "runs" else Path(f"{name}.sqlite")


def is_file(model: str) -> bool:
    """Whether an argument names a file of answers."""
    return Path(model).suffix in comparison_plan.ROWS


def made_with(arguments: argparse.Namespace) -> dict[str, Any]:
    seed = SEED if arguments.seed is None else arguments.seed
    return comparison_plan.made_by(arguments.models, seed, arguments.max_new_tokens, sampling_of(arguments))


def plan_of(arguments: argparse.Namespace) -> comparison_plan.Plan:
    """The comparison that the arguments name."""
    seed = SEED if arguments.seed is None else arguments.seed
    if any(is_file(model) for model in arguments.models):
        if len(arguments.models) > 1:
            raise UserError("one file holds the answers of all models: give it alone")
        return comparison_plan.plan_of_file(Path(arguments.models[0]), seed, arguments.take)
    models = made_with(arguments)
    if arguments.prompts:
        prompts = comparison_plan.prompts_of_file(arguments.prompts, arguments.take)
    else:
        prompts = comparison_plan.held_out_prompts(arguments.models, arguments.take)
    return comparison_plan.Plan(models, prompts, comparison_plan.paired(len(prompts), list(models), seed), seed)


def check_same(votes: Votes, arguments: argparse.Namespace) -> None:
    """Raise UserError where the votes file holds answers made otherwise than the arguments say."""
    remedy = "go on with --votes alone, or name another file with --votes"
    if is_file(arguments.models[0]):
        now = comparison_plan.plan_of_file(Path(arguments.models[0]), votes.seed, arguments.take).models
    else:
        now = made_with(arguments)
    before = votes.models()
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            raise UserError(f"{votes.path}: {difference(name, before.get(name), now.get(name))}; {remedy}")
    if arguments.prompts and comparison_plan.prompts_of_file(arguments.prompts, arguments.take) != votes.prompts():
        raise UserError(f"{votes.path} was made with other prompts than {arguments.prompts}; {remedy}")


def difference(name: str, before: dict | None, now: dict | None) -> str:
    """In words, how a model's answers in the file differ from those the arguments ask for."""
    if before is None or now is None:
        return f"{name} is {'not ' if before is None else ''}one of its models"
    changed = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    was, is_now = before.get(changed), now.get(changed)
    return f"the answers of {name} were made with another {changed}: it was {was} and is {is_now}"


def tell(votes: Votes, arguments: argparse.Namespace) -> None:
    """Write what was asked for of the votes so far."""
    if arguments.report:
        page, found = write_report(votes)
        print("\n".join([*lines(found), str(page)]))
    if arguments.export:
        rows, left_out = export(votes, arguments.export)
        print(f"{arguments.export}: {rows} preferences" + (f"; left out: {counted(left_out)}" if left_out else ""))


def prepare(votes: Votes) -> None:
    """Write every missing answer."""
    for left in make_answers(votes):
        print(f"{left} answers to write", flush=True)
    print(f"{votes.path}: every answer is there")


def ask(votes: Votes, arguments: argparse.Namespace) -> None:
    """Show pairs in the browser or the terminal until the person leaves; answers are written meanwhile."""
    try:
        name = annotator_name(arguments.annotator) if arguments.annotator is not None else None
    except ValueError as error:
        raise UserError(f"--annotator: {error}") from error
    if arguments.terminal and not name:
        raise UserError("--terminal: say who judges with --annotator NAME")
    with Background(votes) as background:
        if arguments.terminal:
            judge(votes, name, lambda: background.problem)
            return
        server = JudgingServer(votes, arguments.host, arguments.port, lambda: background.problem, name)
        server.run(f"votes are kept in {votes.path}; Ctrl-C ends")
    if background.problem:
        raise UserError(background.problem)


if __name__ == "__main__":
    main()
