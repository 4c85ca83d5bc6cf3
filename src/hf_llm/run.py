"""Run a recipe's whole life, from raw text to a chat model and its report. Finished stages are skipped.

    python -m hf_llm.run recipes/quickstart.yaml
    python -m hf_llm.run recipes/quickstart.yaml --fresh=sft    # make sft and what follows anew, the old ones kept

Interrupted anywhere, the same command goes on from there. Training stages use every GPU of this machine, and after a
fault they are started again.
"""

import importlib
import json
import sys

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import read_manifest
from hf_llm.model.load import CAUSAL, IN_WORDS
from hf_llm.pipeline.run import Run
from hf_llm.pipeline.stages import LANGUAGE_MODELS, OPTIONAL, STAGES
from hf_llm.training.fault_tolerance.launch import run_stage
from hf_llm.training.objectives import objective_in


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        sys.exit(0 if argv else 2)
    fresh = [argument.partition("=")[2] for argument in argv if argument.startswith("--fresh=")]
    argv = [argument for argument in argv if not argument.startswith("--fresh=")]
    run = Run(argv)
    for folder in fresh:
        run.archive_from(folder)
    wanted = [folder for folder in STAGES if run.is_requested(folder)]
    missing = [folder for folder in wanted if not run.is_complete(folder)]
    if missing:
        check(run, missing)
    for folder in wanted:
        if folder in missing or not run.is_complete(folder):
            print_main(f"\n== {folder} ==")
            make(folder, argv)
    ending(run, wanted, made=missing)


def check(run: Run, folders: list[str]) -> None:
    """Read every section that will be used, so that a wrong recipe fails now and not hours later."""
    problems = {}  # a dictionary for its order
    for folder in folders:
        module = importlib.import_module(STAGES[folder].module)
        try:
            run.read(module.Recipe)
        except UserError as error:
            problems |= dict.fromkeys(str(error).splitlines()[1:] or [str(error)])
    objective = objective_in(run.tree).kind
    if objective != CAUSAL and (tuned := [folder for folder in folders if folder in OPTIONAL]):
        problem = f"{tuned[0]}: the model_type makes {IN_WORDS[objective]}; leave this section out"
        problems[f"{problem} (docs/objectives.md)"] = None
    if problems:
        raise UserError("\n".join([f"{run.recipe_path} is not right yet:", *problems]))


def make(folder: str, argv: list[str]) -> None:
    """Run one stage, and end this program with its exit code where it fails. One that trains is supervised."""
    code = run_stage(folder, argv)
    if code:
        print_main(f"\n{STAGES[folder].module} stopped (exit code {code}); the same command goes on from there")
        sys.exit(code)


def ending(run: Run, folders: list[str], made: list[str]) -> None:
    """Say what was made: a table of stages, the base and the chat model side by side, and what to try next."""
    manifests = {folder: read_manifest(run.root / folder) for folder in folders}
    width = max(len(folder) for folder in folders)
    print_main(f"\n{run.root} " + ("is complete" if made else "was complete already; nothing was done"))
    for folder, manifest in manifests.items():
        print_main(f"  {folder:<{width}}  {manifest['seconds']:>7.1f} s  {manifest['headline']}")
    results = json.loads((run.root / "evaluation" / "results.json").read_text(encoding="utf-8"))
    for sample in results.get("samples", [])[:3]:
        print_main("\n  " + sample["prompt"])
        for model, text in sample["answers"].items():
            print_main(f"    {model:<5} | {' '.join(text.split())[:160]}")
    best = run.root / [folder for folder in folders if folder in LANGUAGE_MODELS][-1]
    print_main(f"\nThe report: {run.root / 'report' / 'index.html'}")
    print_main("Next:")
    if objective_in(run.tree).kind != CAUSAL:
        return print_main(f"  how to fill gaps with it: {run.root / 'base' / 'README.md'}")
    print_main(f"  python -m hf_llm.chat {best}" if best.name != "base" else f"  python -m hf_llm.generate {best}")
    print_main(f'  python -m hf_llm.generate {run.root / "base"} --prompt "The "')
    print_main(f"  python -m hf_llm.export {best} --output {run.root / 'export'}")


if __name__ == "__main__":
    main()
