"""Make the corpus of a run: text from every source, cleaned, without duplicates, split; makes runs/<name>/corpus.

    python -m hf_llm.prepare_data recipes/quickstart.yaml
    python -m hf_llm.prepare_data recipes/gpt125m.yaml '--corpus.sources=[{path: my_texts, license: cc0-1.0}]'
    python -m hf_llm.prepare_data recipes/quickstart.yaml --explain=<id, url or file>

The same command goes on where an interrupted run stopped, and ends with the same bytes. Read the result with
`datasets.load_dataset("runs/<name>/corpus")`; `--explain` says what became of one document and why.
"""

import sys
from dataclasses import dataclass

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.manifest import digest_of, versions
from hf_llm.data.corpus.build import make_corpus
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.corpus.dropped import explain
from hf_llm.pipeline.run import Run, read_run


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    corpus: Corpus


@command
def main(argv: list[str] | None = None) -> None:
    argv, wanted = _without_explain(sys.argv[1:] if argv is None else argv)
    run, recipe = read_run(Recipe, argv)
    if wanted is not None:
        return _explain(run, wanted)
    with run.open_stage("corpus", recipe) as making:
        if making.is_complete:
            return
        made_with = digest_of(versions())
        ledger = make_corpus(recipe.corpus, making.path, digest_of([making.key, made_with]), made_with)
        for line in funnel(ledger):
            print_main(line)
        documents, size = (sum(counts[unit] for counts in ledger["splits"].values()) for unit in ("documents", "bytes"))
        headline = f"{documents:,} documents, {size / 1e6:,.1f} MB"
        making.complete(headline, licenses=list(ledger["licenses"]), ledger=ledger)


def _without_explain(argv: list[str]) -> tuple[list[str], str | None]:
    """The arguments but `--explain=...`, and what it asks for."""
    if "--explain" in argv[:-1]:
        place = argv.index("--explain")
        argv = [*argv[:place], f"--explain={argv[place + 1]}", *argv[place + 2 :]]
    wanted = [argument.removeprefix("--explain=") for argument in argv if argument.startswith("--explain=")]
    return [argument for argument in argv if not argument.startswith("--explain=")], wanted[-1] if wanted else None


def _explain(run: Run, wanted: str) -> None:
    if not run.is_complete("corpus"):
        raise UserError(f"{run.folder('corpus')} is not complete; run the same command without --explain first")
    for line in explain(run.folder("corpus"), wanted):
        print_main(line)


def funnel(ledger: dict) -> list[str]:
    """The ledger as lines to print: documents left after each rule, what could not be read, unknown licences."""
    lines = []
    for label, source in ledger["sources"].items():
        left = " > ".join(f"{rule} {counts['documents']:,}" for rule, counts in source["rules"].items())
        lines.append(f"{label}: {left} documents")
        dropped = source["rules"]["read"]["dropped"]
        if dropped:
            lines.append("  unreadable, left out: " + ", ".join(f"{n:,} {why}" for why, n in dropped.items()))
            lines += [f"    {example}" for found in source["unreadable"].values() for example in found[:2]]
        if "unknown" in source["license"].split(", "):
            lines.append("  its licence is unknown: do not publish what is made of it before you know")
    for found in ledger["evaluation_sets"]:
        lines.append(
            f"looked for {found['long'] + found['short']:,} texts of {found['name']}; not for {found['too_short']:,} "
            f"of few words and {found['form']:,} that many items share"
        )
    for rule, measured in ledger["learned"].items():
        lines.append(f"{rule}: " + ", ".join(f"{name} {value}" for name, value in measured.items()))
    return lines


if __name__ == "__main__":
    main()
