"""Check a whole recipe in seconds, before anything runs: every section, file and first row.

    python -m hf_llm.check recipes/gpt125m.yaml
    python -m hf_llm.check recipes/gpt125m.yaml --dpo.training.loss_type=ipo

Mistakes in keys, types and values and missing files are told at once, all of them. Where there is none, it builds every
section as far as that goes without the models: the libraries' own configs, the shapes, the names of the layers that
LoRA adapts, a trainer for a tiny model. Opens every local file that the recipe names and reads its first rows, calls
the reward functions on one, and looks at the disk and the Hub. `run` and every stage begin with the same check, for the
folders that are not complete. The exit code is 2 where something has to be corrected.
"""

import sys

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.help_format import print_help
from hf_llm.pipeline.run import Run
from hf_llm.preflight.before_work import check_at_once, check_in_child, format_problems, print_notes
from hf_llm.preflight.remaining_work import list_folders


@command
def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or "-h" in argv or "--help" in argv:
        print_help(__doc__)
        sys.exit(0 if argv else 2)

    run = Run(argv)
    folders = list_folders(run)
    if not folders:
        print_main(f"{run.root} is complete; there is nothing to check")
        return
    check_at_once(run)
    findings = check_in_child(run)
    print_notes(findings)
    if findings.problems:
        raise UserError(format_problems(run, findings))
    print_main(f"{run.recipe_path}: nothing to correct for {', '.join(folders)}")


if __name__ == "__main__":
    main()
