"""Make the corpus of a run: text from every source, cleaned, without duplicates, split; makes runs/<name>/corpus.

    python -m hf_llm.prepare_data recipes/quickstart.yaml
    python -m hf_llm.prepare_data recipes/gpt125m.yaml '--corpus.sources=[{path: my_texts, license: cc0-1.0}]'
    python -m hf_llm.prepare_data recipes/quickstart.yaml --explain=<id, url or file>

The same command resumes an interrupted run, and ends with the same bytes. Read the result with
`datasets.load_dataset("runs/<name>/corpus")`; `--explain` says what became of one document or file, and why.
"""

import sys
from dataclasses import dataclass

from hf_llm.core.console import print_main
from hf_llm.core.errors import UserError, command
from hf_llm.core.extras import require_extras
from hf_llm.core.format import format_megabytes
from hf_llm.core.manifest import digest_of, package_versions, read_manifest
from hf_llm.data.corpus.config import Corpus
from hf_llm.data.files.read_errors import describe_counts, describe_input
from hf_llm.pipeline.run import Run, read_run
from hf_llm.preflight.before_work import check_before_work

EXPLAIN = "--explain"


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""
    corpus: Corpus
    """Where the text comes from, and how it is cleaned, deduplicated and split."""


@command
def main(argv: list[str] | None = None) -> None:
    argv, document = split_explain(list(sys.argv[1:] if argv is None else argv))
    run, recipe = read_run(Recipe, argv)
    require_extras("corpus")  # before the imports below, which need them
    if document is not None:
        print_explanation(run, recipe, document)
        return

    check_before_work(run, "corpus")

    from hf_llm.data.corpus.build import make_corpus

    with run.open_stage("corpus", recipe) as output:
        if output.is_complete:
            return
        made_with = digest_of(package_versions())
        ledger = make_corpus(recipe.corpus, output.path, digest_of([output.key, made_with]), made_with)
        for line in format_funnel(ledger):
            print_main(line)
        documents = sum(split["documents"] for split in ledger["splits"].values())
        size = sum(split["bytes"] for split in ledger["splits"].values())
        headline = f"{documents:,} documents, {format_megabytes(size)}"
        output.complete(headline, licenses=list(ledger["licenses"]), ledger=ledger)


def print_explanation(run: Run, recipe: Recipe, document: str) -> None:
    """Print why a document is not in the corpus, or where it is. Raises UserError where the corpus is not complete."""
    from hf_llm.data.corpus.dropped import explain_document
    from hf_llm.data.corpus.sources import explain_left_out_file, name_file_in_sources

    if read_manifest(run.folder("corpus")) is None:
        raise UserError(f"{run.folder('corpus')} is not complete; run the same command without --explain first")
    left_out = explain_left_out_file(document, recipe.corpus.sources)
    names = name_file_in_sources(document, recipe.corpus.sources)
    for line in left_out or explain_document(run.folder("corpus"), document, names):
        print_main(line)


def split_explain(argv: list[str]) -> tuple[list[str], str | None]:
    """Return the arguments without `--explain=...` (or `--explain ...`), and the document that it names."""
    other_arguments = []
    document = None
    arguments = iter(argv)
    for argument in arguments:
        if argument == EXPLAIN:
            document = next(arguments, None)
            if document is None:
                raise UserError("--explain names no document; write --explain=<id, url or file>")
        elif argument.startswith(f"{EXPLAIN}="):
            document = argument.removeprefix(f"{EXPLAIN}=")
        else:
            other_arguments.append(argument)
    return other_arguments, document


def format_funnel(ledger: dict) -> list[str]:
    """Format the ledger as lines: what was there, documents kept by each filter, read errors, unknown licences."""
    lines = []
    for label, source in ledger["sources"].items():
        lines += [f"{label}: {line}" for line in describe_input(source)]
        kept = " > ".join(f"{name} {counts['documents']:,}" for name, counts in source["rules"].items())
        lines.append(f"{label}: {kept} documents")
        unreadable = source.get("input", {}).get("unreadable") or source["rules"]["read"]["dropped"]
        if unreadable:
            lines.append(f"  unreadable, dropped: {describe_counts(unreadable)}")
            for examples in source["unreadable"].values():
                lines += [f"    {example}" for example in examples[:2]]
        too_long = source["rules"]["length"]["dropped"].get("too_long")
        if too_long:
            lines.append(f"  {too_long:,} are longer than corpus.max_chars, and dropped: rows and pages are not cut")
        if "unknown" in source["license"].split(", "):
            lines.append("  its licence is unknown: do not publish what is made of it before you know")

    for evaluation_set in ledger["evaluation_sets"]:
        searched = evaluation_set["long"] + evaluation_set["short"]
        lines.append(
            f"searched for {searched:,} texts of {evaluation_set['name']}; not for {evaluation_set['too_short']:,} of "
            f"few words and {evaluation_set['form']:,} that many items share"
        )
    for name, measured in ledger["learned"].items():
        lines.append(f"{name}: " + ", ".join(f"{key} {value}" for key, value in measured.items()))
    return lines


if __name__ == "__main__":
    main()
