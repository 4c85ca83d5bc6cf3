"""Run the pipeline of a recipe, from raw text to a chat model and its report. Complete stages are skipped.

    python -m hf_llm.run recipes/quickstart.yaml
    python -m hf_llm.run recipes/quickstart.yaml --fresh=sft    # rebuild sft and what follows; the old folders are kept

The same command resumes an interrupted run. Training stages use every GPU of this machine, and are restarted after a
fault. Where scores miss a bound of `evaluate.gates`, all stages are finished first, then the exit code is 3.
"""

import json
import shlex
import sys
from pathlib import Path

from hf_llm.core.console import print_main
from hf_llm.core.errors import GATES_MISSED_CODE, USER_ERROR_CODE, command
from hf_llm.core.format import one_line
from hf_llm.core.help_format import print_help
from hf_llm.core.manifest import read_manifest
from hf_llm.evaluation.gates import enforce_gates
from hf_llm.pipeline.model_types import CAUSAL
from hf_llm.pipeline.run import Run, split_fresh
from hf_llm.pipeline.stages import LANGUAGE_MODELS, STAGES
from hf_llm.preflight.before_work import check_before_work, import_quickly
from hf_llm.training.fault_tolerance.launch import run_stage

MAX_SAMPLES = 3  # prompts whose answers are printed at the end
MAX_ANSWER_CHARS = 160


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "-h" in argv or "--help" in argv:
        print_help(__doc__)
        sys.exit(0 if argv else 2)

    argv, fresh_folders = split_fresh(argv)
    run = Run(argv)
    for folder in fresh_folders:
        run.archive_from(folder)

    folders = [folder for folder in STAGES if run.is_requested(folder)]
    missing = [folder for folder in folders if not run.is_complete(folder)]
    for folder in folders:
        if folder in missing or not run.is_complete(folder):
            check_before_work(run)
            make_folder(run, folder)
    print_ending(run, folders, has_worked=bool(missing))
    enforce_gates(run.root, run.tree)


def make_folder(run: Run, folder: str) -> None:
    """Run the stage of one folder, and end this program with its exit code where it fails."""
    # Stages are forked from this process, so that what most of them need is imported once.
    import_quickly("hf_llm.training.train_and_save")

    print_main(f"\n== {folder} ==")
    code = run_stage(run, folder)
    if code == GATES_MISSED_CODE and folder == "evaluation":
        return  # it is complete; the report is made first, then this program ends with the same code
    if code:
        remedy = "correct what the error names, then the same command resumes there"
        if code != USER_ERROR_CODE:
            remedy = "the same command resumes there"
        print_main(f"\n{STAGES[folder].module} stopped (exit code {code}); {remedy}")
        sys.exit(code)


def print_ending(run: Run, folders: list[str], has_worked: bool) -> None:
    """Print what was made: a table of stages, the models' answers side by side, and what to try next."""
    state = "is complete" if has_worked else "was complete already; nothing was done"
    print_main(f"\n{run.root} {state}")
    width = max(map(len, folders))
    for folder in folders:
        manifest = read_manifest(run.folder(folder))
        print_main(f"  {folder:<{width}}  {manifest['seconds']:>7.1f} s  {manifest['headline']}")

    results = json.loads((run.folder("evaluation") / "results.json").read_text(encoding="utf-8"))
    for sample in results.get("samples", [])[:MAX_SAMPLES]:
        print_main(f"\n  {sample['prompt']}")
        for model, text in sample["answers"].items():
            print_main(f"    {model:<5} | {one_line(text)[:MAX_ANSWER_CHARS]}")

    print_main(f"\nThe report: {run.folder('report') / 'index.html'}")
    print_main("Next:")
    last_model = [folder for folder in folders if folder in LANGUAGE_MODELS][-1]
    for line in next_commands(run, run.folder(last_model)):
        print_main(f"  {line}")


def next_commands(run: Run, model: Path) -> list[str]:
    """Return the commands to try with the last model of a run."""
    from hf_llm.training.objectives import resolve_objective

    base = run.folder("base")
    if resolve_objective(run.tree).kind != CAUSAL:
        return [f"how to fill masked tokens with it: {base / 'README.md'}"]
    quoted_base = shlex.quote(str(base))
    quoted_model = shlex.quote(str(model))
    commands = [f'python -m hf_llm.generate {quoted_base} --prompt "The "', f"python -m hf_llm.export {quoted_model}"]
    if model != base:
        commands.insert(0, f"python -m hf_llm.chat {quoted_model}")
    return commands


if __name__ == "__main__":
    main()
