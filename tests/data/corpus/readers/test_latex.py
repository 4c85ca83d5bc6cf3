import gzip
import io
import tarfile
import time
from itertools import pairwise

import pytest

from hf_llm.data.corpus.readers.latex import convert_paper, read
from hf_llm.data.files.read_errors import ReadErrors

PAPER = r"""% a comment before everything
\documentclass[11pt]{article}
\usepackage{amsmath}
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[1]{\left\| #1 \right\|}
\newcommand{\model}{\textsc{Net}\xspace}
\newcommand{\pair}[2][x]{(#1, #2)}
\def\half{\frac{1}{2}}
\DeclareMathOperator{\argmax}{arg\,max}
\title{On the \emph{Nature}\\of Things\thanks{Supported.}}
\author{Ada L\"ovelace \and Kurt G{\"o}del}
\begin{document}
\maketitle
\begin{abstract}
We study \model and show $\norm{x} \in \R$ for 100\% of cases~\cite{a,b}.
\end{abstract}
\section{Introduction}\label{sec:intro}
As \citet{foo} shows, \textbf{bold and \textit{nested} text} works,
and goes on. % a comment
``Quoted'' --- dashes -- caf\'e, na\"{\i}ve, \"Angstr\"om, \v{C}apek, stra\ss e (see~\ref{x}).

See \href{http://x.y/a%20b}{the page} and \url{http://a.b/c%20d}. A footnote\footnote{Of \emph{note}.} here.
\begin{equation}\label{eq:1}
  \half + \argmax_x \pair{y} + \pair[a]{b} = 1
\end{equation}
where $x<1$. Costs \$5 \& more, \textcolor{red}{in red}.
\begin{align}
a &= b \\
c &= d \nonumber
\end{align}
\begin{itemize}
\item First thing
\item[(b)] Second thing
\end{itemize}
\begin{figure}[t]
\centering\includegraphics[width=1cm]{a.png}
\caption{A figure of $x$ things.}\label{f}
\end{figure}
\begin{theorem}[Main] All is well. \end{theorem}
\begin{tabular}{ll} one & two \\ three & four \end{tabular}
\begin{lstlisting}[language=Python]
for i in x:  # 100% of it
    print(i)
\end{lstlisting}
\subsection*{Results}
Done {\em now}.
\bibliography{refs}
\begin{thebibliography}{9}\bibitem{a} Foo.\end{thebibliography}
\end{document}
after the end
"""

TEXT = r"""On the Nature of Things

Ada Lövelace, Kurt Gödel

Abstract

We study Net and show $\left\| x \right\| \in \mathbb{R}$ for 100% of cases.

Introduction

As shows, bold and nested text works, and goes on. “Quoted” — dashes – café, naïve, Ängström, Čapek, straße (see).

See the page and http://a.b/c%20d. A footnote (Of note.) here.

$$\frac{1}{2} + \operatorname{arg\,max}_x (x, y) + (a, b) = 1$$

where $x<1$. Costs $5 & more, in red.

$$\begin{aligned} a &= b \\ c &= d \end{aligned}$$

- First thing
- (b) Second thing

A figure of $x$ things.

Theorem (Main). All is well.

for i in x:  # 100% of it
    print(i)

Results

Done now.
"""


def read_papers(path, max_chars=100_000):
    errors = ReadErrors()
    return list(read(path, errors, None, max_chars)), errors


def pack_archive(files, gz=True):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        for name, text in files.items():
            data = text if isinstance(text, bytes) else text.encode()
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return gzip.compress(content.getvalue()) if gz else content.getvalue()


def small_paper(body, preamble=""):
    return f"\\documentclass{{article}}\n{preamble}\n\\begin{{document}}\n{body}\n\\end{{document}}\n"


def test_a_paper_becomes_its_prose_with_headings_and_formulas(tmp_path):
    path = tmp_path / "paper.tex"
    path.write_text(PAPER, encoding="utf-8")
    (document,), errors = read_papers(path)
    assert document.text == TEXT
    assert document.about == {"title": "On the Nature of Things", "author": "Ada Lövelace, Kurt Gödel"}
    assert errors.records == 1 and not errors.dropped


@pytest.mark.parametrize("packed", ["folder", "paper.tar.gz", "2101.00001.gz", "paper.zip", "paper.tar"])
def test_the_files_of_a_paper_are_put_together_into_one_document(tmp_path, packed):
    files = {
        "ms/main.tex": small_paper("\\input{intro}\n\\include{sections/two.tex}\n\\input other", "\\input{macros}"),
        "ms/intro.tex": "First \\name part.",
        "ms/sections/two.tex": "Second part. \\input{sections/three}",
        "ms/sections/three.tex": "Third part.",
        "ms/macros.tex": "\\newcommand{\\name}{big}",
        "ms/other.tex": "Last part.",
        "ms/unused.tex": "Not part of it.",
        "ms/figure.png": b"\x89PNG\0\0",
    }
    if packed == "folder":
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
        documents = [document for path in sorted(tmp_path.rglob("*.tex")) for document in read_papers(path)[0]]
    else:
        path = tmp_path / packed
        if packed.endswith("zip"):
            import zipfile

            with zipfile.ZipFile(path, "w") as out:
                for name, text in files.items():
                    out.writestr(name, text)
        else:
            path.write_bytes(pack_archive(files, gz=packed.endswith("gz")))
        documents, errors = read_papers(path)
        assert not errors.dropped
    assert [document.text for document in documents] == ["First big part. Second part. Third part. Last part.\n"]


def test_a_single_gzipped_file_and_a_month_of_arxiv_are_papers(tmp_path):
    one = gzip.compress(small_paper("The first paper.").encode())
    (tmp_path / "0101001.gz").write_bytes(one)
    assert [document.text for document in read_papers(tmp_path / "0101001.gz")[0]] == ["The first paper.\n"]
    month = {
        "0101/0101001.gz": one,
        "0101/0101002.gz": pack_archive({"a.tex": small_paper("The \\input{b}"), "b.tex": "second paper."}),
        "0101/0101003.pdf": b"%PDF-1.4",
        "0101/0101004.gz": gzip.compress(b"%auto-ignore\nThis paper has been withdrawn."),
    }
    (tmp_path / "arXiv_src_0101_001.tar").write_bytes(pack_archive(month, gz=False))
    documents, errors = read_papers(tmp_path / "arXiv_src_0101_001.tar")
    assert [document.text for document in documents] == ["The first paper.\n", "The second paper.\n"]
    assert errors.dropped == {"no LaTeX": 1}


def test_inclusions_never_leave_the_folder_and_loops_end(tmp_path):
    (tmp_path / "secret.tex").write_text("SECRET")
    folder = tmp_path / "paper"
    folder.mkdir()
    (folder / "link.tex").symlink_to(tmp_path / "secret.tex")
    secrets = f"\\input{{../secret}} \\input{{{tmp_path}/secret.tex}} \\input{{link}}"
    (folder / "a.tex").write_text(small_paper(f"Text. {secrets} \\input{{b}}"))
    (folder / "b.tex").write_text("B \\input{a} \\input{b}")
    (document,), _ = read_papers(folder / "a.tex")
    assert document.text == "Text. B\n"


@pytest.mark.parametrize(
    "definition",
    [
        "\\newcommand{\\a}{\\a\\a}",
        "\\newcommand{\\a}{\\b\\b}\\newcommand{\\b}{\\a\\a}",
        "\\def\\a{x\\a}",
        "".join(f"\\newcommand{{\\{c}}}{{\\{d}\\{d}}}" for c, d in pairwise("abcdefghijklmnopqrst")),
    ],
)
def test_macros_without_end_come_to_an_end(definition):
    begun = time.monotonic()
    text, _ = convert_paper({"a.tex": small_paper("Before. \\a{} After.", definition)}, "a.tex")
    assert text.startswith("Before.") and time.monotonic() - begun < 5


ENDLESS = [
    "\\newcommand{\\bad}[1]{\\bad{#1}\\bad{#1}}",
    "\\newcommand{\\bad}[1]{\\worse{#1}}\\newcommand{\\worse}[1]{\\bad{#1}\\bad{#1}}",
    "\\def\\bad#1{x\\bad{#1}}",
    "\\def\\bad#1{\\bad}",  # takes all that follows as its argument
    "\\makeatletter\\newcommand{\\bad}[1]{\\bad@x{#1}}\\def\\bad@x#1{\\bad@x{#1}y}\\makeatother",
    "\\renewcommand{\\bad}[1]{\\textbf{\\bad{#1}}}",
]


@pytest.mark.parametrize("definition", ENDLESS)
def test_a_macro_without_end_stays_as_written_and_is_counted_and_every_other_one_is_expanded(definition):
    preamble = definition + "\\newcommand{\\R}{\\mathbb{R}}\\newcommand{\\term}[1]{\\emph{#1}}"
    lines = [f"A \\term{{word {i}}} on $\\R^{i}$ is here.\n\n" for i in range(50)]
    calls = "One \\bad{y} call, \\term{in \\bad{z} another}, and $\\bad{w}$.\n\n"
    text, about = convert_paper({"a.tex": small_paper(calls + "".join(lines) + calls, preamble)}, "a.tex")
    paragraphs = text.strip().split("\n\n")
    assert paragraphs[1:-1] == [f"A word {i} on $\\mathbb{{R}}^{i}$ is here." for i in range(50)]
    assert paragraphs[0] == paragraphs[-1] == "One \\bad{y} call, in \\bad{z} another, and $\\bad{w}$."
    assert about["unexpanded_macros"] == 6


def test_macros_that_double_what_they_are_given_stay_as_written_and_cost_no_other():
    letters = "abcdefghijklmnopqrst"
    doubling = "".join(f"\\newcommand{{\\x{c}}}{{\\x{d}\\x{d}}}" for c, d in pairwise(letters))
    preamble = doubling + "\\newcommand{\\xt}{long}\\newcommand{\\R}{\\mathbb{R}}"
    text, about = convert_paper({"a.tex": small_paper("A \\xa{} and $\\R$, \\xq{} times.", preamble)}, "a.tex")
    assert text == "A \\xa{} and $\\mathbb{R}$, longlonglonglonglonglonglonglong times.\n"
    assert about["unexpanded_macros"] == 1


@pytest.mark.parametrize(
    ("definitions", "written", "text"),
    [
        ("\\newcommand{\\abs}{\\@ifstar\\abs@star\\abs@nostar}\\newcommand{\\abs@star}[1]{\\left|#1\\right|}"
         "\\newcommand{\\abs@nostar}[1]{|#1|}", "$\\abs{x}$ $\\abs*{x}$ $\\abs*x$",
         "$|x|$ $\\left|x\\right|$ $\\left|x\\right|$"),
        ("\\def\\f{\\@ifnextchar[\\f@with\\f@without}\\def\\f@with[#1]#2{}\\newcommand{\\f@without}[1]{f(#1)}",
         "$\\f{x}$", "$f(x)$"),
        ("\\def\\prd#1{\\@ifnextchar\\bgroup{\\prd@one{#1}}{\\prd@last{#1}}}\\def\\prd@one#1{\\prod_{#1}\\prd}"
         "\\def\\prd@last#1{\\prod_{#1}}", "$\\prd{x}{y}{z} C$", "$\\prod_{x}\\prod_{y}\\prod_{z}C$"),
        ("\\newcommand{\\defeq}{\\vcentcolon\\equiv}\\newcommand{\\at@x}{\\defeq}",
         "$a\\defeq b$ a@x.org", "$a\\vcentcolon\\equiv b$ a@x.org"),
        ("\\newcommand{\\set}[2][x]{\\{#1 : #2\\}}", "$\\set{A}$ $\\set[y]{B}$", "$\\{x : A\\}$ $\\{y : B\\}$"),
        ("\\newcommand{\\al}{\\alpha}\\newcommand{\\apply}[1]{\\al#1}", "$\\al x\\apply b$", "$\\alpha x\\alpha b$"),
        ("\\newcommand{\\both}[1]{#1 and #1}\\newcommand{\\R}{real}", "\\both{\\R{} \\both{x}}",
         "real x and x and real x and x"),
        ("\\newcommand{\\call}{\\emphit}\\newcommand{\\emphit}[1]{<#1>}", "\\call{x} and \\call{y}", "<x> and <y>"),
        ("\\def\\f{\\@ifnextchar[\\f@with\\f@without}\\def\\f@with[#1]#2{f_{#1}(#2)}"
         "\\newcommand{\\f@without}[1]{f(#1)}",
         "$\\f{x}$ and $\\f[a_1]{x}$", "$f(x)$ and $f_{a_1}(x)$"),
        ("\\def\\from#1to#2.{[#1,#2]}\\def\\upto#1\\stop{<#1>}",
         "\\from a to {b.c}. and \\upto{x}y\\stop z \\from here", "[ a, b.c] and <xy> z \\from here"),
        ("\\newcommand{\\last}[1]{(#1)}", "The {\\last} end", "The end"),
    ],
)  # fmt: skip
def test_macros_are_expanded_as_tex_does(definitions, written, text):
    preamble = f"\\makeatletter{definitions}\\makeatother"
    assert convert_paper({"a.tex": small_paper(written, preamble)}, "a.tex")[0] == text + "\n"


@pytest.mark.parametrize(
    ("definition", "written"),
    [
        ("\\newcommand{\\lam}[1]{\\ifdraft #1\\else\\fi}", "\\lam{x:A}"),
        ("\\def\\lam#1{\\@lamarg#1:\\@end}\\def\\@lamarg#1:#2\\@end{\\if\\relax#2\\relax #1\\fi}", "\\lam{x:A}"),
        ("\\newcommand{\\lam}{\\@startsection{section}{1}{\\z@}}", "\\lam{A title}"),
        ("\\newcommand{\\lam}[2][a]{\\csname #1\\endcsname#2}", "\\lam[b]{c}{d}"),
    ],
)
def test_a_macro_that_is_a_program_stays_as_written_and_is_counted(definition, written):
    preamble = f"\\makeatletter{definition}\\newcommand{{\\R}}{{\\mathbb{{R}}}}\\makeatother"
    paper = small_paper(f"Prose {written} and ${written} \\in \\R$.", preamble)
    text, about = convert_paper({"a.tex": paper}, "a.tex")
    assert text == f"Prose {written} and ${written} \\in \\mathbb{{R}}$.\n" and about["unexpanded_macros"] == 2


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ("50\\% of it % not this", "50% of it"),
        ("line\\\\ % \\end{document}\nbreak", "line break"),
        ("a \\verb|x_%y$| b", "a x_%y$ b"),
        ("{\\bf bold} \\underline{under} {\\Large big}", "bold under big"),
        ("Smith et~al.~\\cite[p.~3]{x} say (\\cite{y}) so \\citep[see][]{z}.", "Smith et al. say so."),
        ("price \\$5 and \\$6, not maths", "price $5 and $6, not maths"),
        ("\\[ x = \\text{if } y \\label{a} \\]", "$$x = \\text{if } y$$"),
        ("\\(a\\) and $$b$$", "$a$ and\n\n$$b$$"),
        ("a set \\{1, 2\\} here", "a set {1, 2} here"),
        ("$\\{1, 2\\}$", "$\\{1, 2\\}$"),
        ("\\begin{enumerate}[(i)]\\item one\\item two\\end{enumerate}", "- one\n- two"),
        ("\\begin{comment}hidden\\end{comment}shown", "shown"),
        ("\\begin{table}\\begin{tabular}{l}a\\end{tabular}\\caption{What \\emph{it} shows}\\end{table}",
         "What it shows"),
        ("\\begin{tikzpicture}\\draw (0,0);\\end{tikzpicture}text", "text"),
        ("\\section[short]{The \\LaTeX{} title}\ntext", "The LaTeX title\n\ntext"),
        ("\\newcommand{\\late}[1]{<#1>}a \\late{b} c", "a <b> c"),
        ("an unknown \\foo{command} keeps its text", "an unknown command keeps its text"),
        ("an open { brace and a lone $ sign", "an open brace and a lone $ sign"),
    ],
)  # fmt: skip
def test_a_construct_becomes_its_text(written, text):
    assert convert_paper({"a.tex": small_paper(written)}, "a.tex")[0] == text + "\n"


def test_latex_nested_without_end_is_counted(tmp_path):
    (tmp_path / "a.tex").write_text(small_paper("\\section{" * 5000))
    documents, errors = read_papers(tmp_path / "a.tex")
    assert documents == [] and errors.dropped == {"LaTeX nested too deep": 1}


def test_a_paper_in_latin_1_is_read(tmp_path):
    (tmp_path / "a.tex").write_bytes(small_paper("Un café.").encode("latin-1"))
    assert read_papers(tmp_path / "a.tex")[0][0].text == "Un café.\n"


def test_a_truncated_archive_gives_the_files_before_the_cut(tmp_path):
    whole = pack_archive({"a.tex": small_paper("Whole. \\input{b}"), "b.tex": "x" * 10}, gz=False)
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(whole[:1500]))
    documents, errors = read_papers(tmp_path / "a.tar.gz")
    assert [document.text for document in documents] == ["Whole.\n"]
    (tmp_path / "b.gz").write_bytes(gzip.compress(small_paper("text " * 1000).encode())[:-20])
    documents, errors = read_papers(tmp_path / "b.gz")
    assert documents == [] and errors.dropped == {"damaged file": 1}


def test_a_long_paper_comes_in_pieces(tmp_path):
    body = "\n\n".join(f"Paragraph {i} of it." for i in range(3000))
    (tmp_path / "a.tex").write_text(small_paper(body, "\\title{T}"))
    documents, _ = read_papers(tmp_path / "a.tex", max_chars=20_000)
    assert len(documents) > 3 and {piece.about["title"] for piece in documents} == {"T"}
    assert "Paragraph 2999 of it." in documents[-1].text


@pytest.mark.parametrize("name", ["a.tex", "a.tex.gz", "a.tar.gz"])
def test_what_is_after_the_most_that_is_read_of_a_paper_is_counted(tmp_path, monkeypatch, name):
    monkeypatch.setattr("hf_llm.data.corpus.readers.latex.PAPER_BYTES", 4096)
    paper = small_paper("A sentence of the paper. " * 1000)
    content = paper.encode()
    if name == "a.tex.gz":
        content = gzip.compress(content)
    elif name == "a.tar.gz":
        content = pack_archive({"a.tex": paper})
    (tmp_path / name).write_bytes(content)
    errors = ReadErrors()
    documents = list(read(tmp_path / name, errors, None, 100_000))
    assert documents
    assert errors.left_out.total() == 1
    assert "LaTeX after the first" in next(iter(errors.left_out))
