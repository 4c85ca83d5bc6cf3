"""Render a run as one web page: its numbers, curves, samples and sources; makes runs/<name>/report/index.html.

    python -m hf_llm.report recipes/gpt125m.yaml

Beside it stands corpus.html with every decision about the text. Each page is a single file that loads nothing. Rebuilt
each time, from whatever stages are complete.
"""

from dataclasses import dataclass

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import command
from hf_llm.core.manifest import read_manifest
from hf_llm.pipeline.run import read_run
from hf_llm.pipeline.stage_inputs import list_inputs
from hf_llm.reporting.corpus_page import render_corpus_page
from hf_llm.reporting.run_page import render_run_page


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str
    """The run's name: everything goes to runs/<name>/."""


@command
def main(argv: list[str] | None = None) -> None:
    run, recipe = read_run(Recipe, argv)
    inputs = {name: run.folder(name) for name in list_inputs("report", run.tree) if read_manifest(run.folder(name))}
    with run.open_stage("report", recipe, inputs) as output:
        page = render_run_page(run.root, run.tree)
        path = output.path / "index.html"
        write_text(path, page)

        corpus_page = render_corpus_page(run.root, run.name)
        if corpus_page:
            write_text(output.path / "corpus.html", corpus_page)

        output.complete(f"{path} ({len(page) / 1e3:,.0f} kB)", [])


if __name__ == "__main__":
    main()
