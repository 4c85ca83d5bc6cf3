"""Words that we do not use, in messages, docstrings and docs: the field has better ones (CONTRIBUTING.md)."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tiny_recipe import ROOT

# phrase -> what to write instead
PHRASES = {
    r"(?<!there )\b(is|are) no (readable|UTF-8|JSON|YAML|\w+:\w+|folder|function|model|number|list|text|file)\b":
        "is not a ...; cannot parse ... as ...",
    r"\bgo(es|ing)?,? on (from|where)\b|\bgone on from\b|\bwent on from\b": "resume, continue",
    r"\bgo(es|ing)? back to a checkpoint\b": "roll back to a checkpoint",
    r"\bcheckpoints?\b.{0,30}\bset aside\b|\bset aside\b.{0,30}\bcheckpoints?\b": "quarantined",
    r"\btold to stop\b|\btold twice\b|\btold once more\b": "received SIGTERM",
    r"\bin vain\b": "timed out waiting for rank N",
    r"\btheir tokens right\b|\bTokens of gaps right\b|\bgaps right\b": "token accuracy, span accuracy",
    r"\b[Mm]asked (tokens )?right\b": "masked-token accuracy",
    r"\branked right\b": "preference accuracy",
    r"\bnats( per token| a token)? (away )?from (the model before|where it started)\b": "KL to the reference",
    r"\bends? by (itself|themselves)\b|\bstop rate\b": "EOS rate",
    r"\blearnt\b|\blearns? from\b|\bto learn from\b": "trained on",
    r"\bwhole life\b": "the pipeline, a run",
    r"\banew\b": "rebuilt, again",
    r"\bmade (from|with) another\b": "inputs changed",
    r"\b[Rr]eckoned\b": "estimated",
    r"\bbefell\b|\bbefalls?\b|\bbefallen\b": "happened to; uninterrupted",
    r"\bthe dial\b|\b[Oo]ne dial\b|\bdials\b": "sizing",
    r"\bprintout\b": "model summary",
}  # fmt: skip

# Reasons by which manifests count dropped rows: strings that older runs hold.
DROP_REASONS = {
    "src/hf_llm/data/chat/formats.py": r"is no text$|is no list of pairs$",
    "src/hf_llm/data/chat/messages.py": r"(is|are) no (list|text|JSON)$",
    "src/hf_llm/data/corpus/readers/tabular.py": r"is no text$",
    "src/hf_llm/posttraining/rows/sft_dataset.py": r"^no answer that is to be learnt$",
}

CODE = re.compile(r"```.*?```|`[^`]*`|https?://\S+|^ {4}.*$", re.DOTALL | re.MULTILINE)


def texts_of_module(path: Path) -> Iterator[tuple[int, str]]:
    """Every string of a Python file that holds words, f-strings joined: docstrings, messages, headings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts_of_f_strings: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts_of_f_strings.update(id(part) for part in node.values)
            words = [part.value if isinstance(part, ast.Constant) else "X" for part in node.values]
            yield node.lineno, "".join(map(str, words))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in parts_of_f_strings:
            if " " in node.value:
                yield node.lineno, node.value


def texts() -> Iterator[tuple[str, str]]:
    package = ROOT / "src" / "hf_llm"
    for path in [*sorted(package.rglob("*.py")), *sorted((ROOT / "benchmarks").glob("*.py"))]:
        name = path.relative_to(ROOT).as_posix()
        for line, text in texts_of_module(path):
            is_drop_reason = name in DROP_REASONS and re.search(DROP_REASONS[name], text)
            if not is_drop_reason:
                yield f"{name}:{line}", text
    pages = [*package.rglob("*.html"), *package.rglob("*.jinja"), *package.rglob("*.js")]
    documents = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in sorted(pages) + documents:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")


@pytest.mark.parametrize("phrase", PHRASES)
def test_a_phrase_of_ours_is_not_used(phrase):
    used = []
    for place, text in texts():
        words = " ".join(CODE.sub(" ", text).split())
        used += [f"{place}: ...{words[max(0, m.start() - 40) : m.end() + 40]}..." for m in re.finditer(phrase, words)]
    assert not used, f"write instead: {PHRASES[phrase]}\n" + "\n".join(used)


def test_the_patterns_find_what_they_are_for():
    for phrase, text in {
        "readable": "recipe.yaml is no readable YAML",
        "gone on": "a training that can be gone on from",
        "tokens right": "34% of their tokens right",
    }.items():
        assert any(re.search(pattern, text) for pattern in PHRASES), phrase
