"""Show a run as one web page: its numbers, curves, samples and sources; makes runs/<name>/report/index.html,
and beside it corpus.html with every decision about the text.

    python -m hf_llm.report recipes/gpt125m.yaml

Each page is a single file that loads nothing. Made anew each time, from whatever stages are finished.
"""

from dataclasses import dataclass

from hf_llm.core.atomic_io import write_text
from hf_llm.core.errors import command
from hf_llm.pipeline.run import read_run
from hf_llm.reporting.corpus_page import corpus_page
from hf_llm.reporting.run_page import page


@dataclass
class Recipe:
    """What this stage reads of the recipe."""

    name: str


@command
def main(argv: list[str] | None = None) -> None:
    run, _ = read_run(Recipe, argv)
    with run.open_stage("report") as making:
        text = page(run.root, run.tree)
        write_text(making.path / "index.html", text)
        if corpus := corpus_page(run.root, run.name):
            write_text(making.path / "corpus.html", corpus)
        making.complete(f"{making.path / 'index.html'} ({len(text) / 1e3:,.0f} kB)", [])


if __name__ == "__main__":
    main()
