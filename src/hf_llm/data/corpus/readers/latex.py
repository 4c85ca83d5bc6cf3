"""Papers in LaTeX turned into text: one document per paper, prose with headings, mathematics as it is written.

A paper is a .tex file, or an archive of one (arXiv's .tar.gz, or its single gzipped file). An archive whose members are
archives, as arXiv's monthly ones, is as many papers. Files that the main file includes are put in their places; macros
the paper defines are expanded; comments, the preamble, citations, labels, pictures and the bibliography are left out,
captions and footnotes kept. Only Python's regular expressions: pylatexenc turns formulas into look-alike characters
and does not know a paper's own macros.
"""

import re
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from hf_llm.data.corpus.readers.books import decode_book
from hf_llm.data.corpus.readers.document import Found
from hf_llm.data.files.archives import is_archive, members
from hf_llm.data.files.read_errors import Faults
from hf_llm.data.files.tabular import COMPRESSED, count_damage, open_file
from hf_llm.data.files.text_files import cut

if TYPE_CHECKING:
    from hf_llm.data.corpus.sources import Source

PAPER_BYTES = 32 << 20  # of LaTeX in one paper
INCLUSIONS = 500  # files put in place, and ...
EXPANSION_CHARS = 4 << 20  # ... characters, 50 more for each macro, written for macros in one paper: more is a loop
EXPANSION_DEPTH = 30

_TEX = {".tex", ".ltx", ".latex"}
_MAIN = re.compile(r"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*?(?:\n[ \t]*|$)")
_INCLUDE = re.compile(r"\\(?:input|include|subfile)\s*(?:\{([^}]*)\}|([\w./-]+))")
_DEFINITION = re.compile(
    r"\\(?:(?:re)?newcommand|providecommand|DeclareRobustCommand|DeclareMathOperator)\*?\s*"
    r"(?:\{\s*\\([A-Za-z]+)\s*\}|\\([A-Za-z]+))\s*(?:\[(\d)\])?\s*(\[[^\]]*\])?\s*(?=\{)"
)
_SHORT_DEFINITION = re.compile(r"\\(?:def|gdef|edef)\s*\\([A-Za-z]+)((?:#\d)*)\s*(?=\{)")
_MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\\n]|\\.|\n(?![ \t]*\n))+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    r"|\\begin\{((?:equation|align|gather|multline|eqnarray|math|displaymath|flalign|alignat)\*?)\}(.+?)\\end\{\5\}",
    re.DOTALL,
)
_HELD = re.compile("\x02(\\d+)\x03")  # where a formula or a program was, which is put back at the end

_WITHOUT_TEXT = ("tikzpicture", "pgfpicture", "thebibliography", "filecontents", "picture", "comment", "CCSXML")
_FLOATS = ("figure", "table", "wrapfigure", "wraptable", "sidewaystable", "sidewaysfigure", "algorithm", "SCfigure")
_VERBATIM = re.compile(
    r"\\begin\{(verbatim|lstlisting|minted)\*?\}(?:\[[^\]]*\])?(?:\{\w+\})?(.*?)\\end\{\1\*?\}", re.DOTALL
)
_ITEM = re.compile(r"\s*\\item\b\s*(?:\[([^\]]*)\])?\s*")
_STATEMENT = re.compile(
    r"\\begin\{(proof|theorem|lemma|proposition|corollary|definition|remark|example)\}(?:\[([^\]]*)\])?"
)
_HEADING = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")
# Commands that go with all their arguments.
_DROPPED = {
    "cite", "citep", "citet", "citealp", "citealt", "citeauthor", "citeyear", "citeyearpar", "Citet", "Citep", "nocite",
    "parencite", "textcite", "autocite", "footcite", "ref", "eqref", "pageref", "autoref", "cref", "Cref", "nameref",
    "vref", "label", "index", "includegraphics", "bibliography", "bibliographystyle", "vspace", "hspace", "input",
    "include", "thanks", "affil", "affiliation", "address", "email", "institute", "date", "pagestyle", "thispagestyle",
    "setcounter", "addtocounter", "setlength", "addtolength", "newtheorem", "usepackage", "hypersetup", "graphicspath",
    "keywords", "pacs", "subjclass", "rule", "phantom", "hphantom", "vphantom", "hypertarget", "orcid", "markboth",
    "pagenumbering", "bibitem", "providecommand", "newcommand", "renewcommand", "newenvironment", "def", "let",
    "RequirePackage", "printbibliography", "addbibresource", "todo", "resizebox", "scalebox", "color", "textcolor",
    "colorbox", "thicklines", "vskip", "hskip", "numberwithin", "theoremstyle", "allowdisplaybreaks", "titlerunning",
    "authorrunning", "authornote", "ccsdesc", "acmConference", "acmDOI", "acmISBN", "setcopyright", "copyrightyear",
    "acmYear", "linespread", "renewenvironment", "IEEEauthorblockA", "corref", "fntext", "ead",
}  # fmt: skip
# Of these the last argument is text, those before it are not.
_LAST_IS_TEXT = {"textcolor", "colorbox", "resizebox", "scalebox", "href", "hypertarget", "raisebox", "parbox"}
_SYMBOLS = {
    "\\%": "%", "\\&": "&", "\\#": "#", "\\$": "$", "\\_": "_", "\\{": "{", "\\}": "}", "\\ ": " ", "\\,": " ",
    "\\;": " ", "\\:": " ", "\\!": "", "\\/": "", "\\-": "", "\\@": "", "~": " ", "``": "“", "''": "”", "---": "—",
    "--": "–", "{": "", "}": "", "\\": "",
}  # fmt: skip
_NAMED = {
    "ldots": "…", "dots": "…", "textellipsis": "…", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ", "OE": "Œ", "o": "ø",
    "O": "Ø", "aa": "å", "AA": "Å", "l": "ł", "L": "Ł", "i": "ı", "j": "ȷ", "S": "§", "P": "¶", "copyright": "©",
    "pounds": "£", "euro": "€", "textendash": "–", "textemdash": "—", "textbackslash": "\\", "textasciitilde": "~",
    "textbar": "|", "textless": "<", "textgreater": ">", "LaTeX": "LaTeX", "TeX": "TeX", "BibTeX": "BibTeX",
    "textquoteright": "’", "textquoteleft": "‘", "quad": " ", "qquad": " ", "par": "\n\n", "newline": "\n",
    "linebreak": "\n", "slash": "/", "degree": "°", "textdegree": "°", "xspace": " ", "and": ", ", "ie": "i.e.",
    "eg": "e.g.", "etal": "et al.",
}  # fmt: skip
_ACCENTS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307",
    "u": "\u0306", "v": "\u030c", "H": "\u030b", "c": "\u0327", "k": "\u0328", "r": "\u030a", "d": "\u0323",
    "b": "\u0331",
}  # fmt: skip
_ACCENT = re.compile(
    r"\\(?:(['`^\"~=.])\s*|([uvHckrdb])(?![A-Za-z])\s*)(?:\{\s*(\\[ij]|[A-Za-z])\s*\}|(\\[ij]\b|[A-Za-z]))"
)
_COMMAND = re.compile(r"\\([A-Za-z@]+)\*?[ \t]*")


def read(path: Path, faults: Faults, source: "Source", max_chars: int) -> Iterator[Found]:
    """The pieces of each paper at a path, with its title and authors.

    A .tex file that is part of another's paper gives nothing: it is read with that one. What holds no LaTeX at all
    (arXiv's withdrawn papers, those in PDF alone) is counted.
    """
    if is_archive(path) or path.suffix.lower() in COMPRESSED:
        for files in _papers(path, faults):
            yield from _paper(files, str(path), faults, max_chars)
    elif _is_part(path):
        return
    else:
        folder = path.parent
        files = {path.relative_to(folder).as_posix(): path.read_bytes()[:PAPER_BYTES]}
        yield from _paper(files, str(path), faults, max_chars, folder)


def _is_part(path: Path) -> bool:
    """Whether a file without a document class lies beside or below one that has it."""
    if _has_class(path):
        return False
    beside = [*path.parent.glob("*.tex"), *path.parent.parent.glob("*.tex")]
    return any(_has_class(other) for other in beside if other != path and other.is_file())


def _has_class(path: Path) -> bool:
    with open(path, "rb") as file:
        return bool(_MAIN.search(file.read(100_000).decode("latin-1")))


def _papers(path: Path, faults: Faults) -> Iterator[dict[str, bytes]]:
    """The LaTeX files of each paper in an archive, by name. A single compressed file is a tar or a .tex file."""
    if not is_archive(path):
        with count_damage(path, faults), open_file(path) as file:
            file.seek(257)
            tarred = file.read(5) == b"ustar"
            file.seek(0)
            if not tarred:
                yield {path.stem: file.read(PAPER_BYTES)}
                return
            yield from _papers_of(path, faults, f"paper.tar{path.suffix}")
        return
    yield from _papers_of(path, faults, path.name)


def _papers_of(path: Path, faults: Faults, known_as: str) -> Iterator[dict[str, bytes]]:
    files, size = {}, 0
    for name, file in members(path, faults, known_as):
        suffix = PurePosixPath(name).suffix.lower()
        if is_archive(file) or suffix in COMPRESSED:
            yield from _papers(file, faults)
        elif suffix in _TEX and size < PAPER_BYTES:
            files[name] = file.read_bytes()[:PAPER_BYTES]
            size += len(files[name])
    if files:
        yield files


def _paper(
    files: dict[str, bytes], where: str, faults: Faults, max_chars: int, folder: Path | None = None
) -> Iterator[Found]:
    faults.records += 1
    texts = {name: text for name, content in files.items() if (text := decode_book(content)) is not None}
    main = _main_file(texts)
    if main is None or "\\" not in texts[main]:
        return faults.drop("no LaTeX", where)
    try:
        text, about = paper(texts, main, folder)
    except RecursionError:
        return faults.drop("LaTeX nested too deep", where)
    for piece in cut(text, max_chars):
        yield Found(piece, about=dict(about))


def _main_file(texts: dict[str, str]) -> str | None:
    """The file with a document class and the most text below it; the longest one where none has it."""
    mains = [name for name, text in texts.items() if _MAIN.search(text) and "\\begin{document}" in text]
    candidates = mains or [name for name, text in texts.items() if _MAIN.search(text)] or list(texts)
    return max(candidates, key=lambda name: (-name.count("/"), len(texts[name]), name), default=None)


def paper(texts: dict[str, str], main: str, folder: Path | None = None) -> tuple[str, dict[str, str]]:
    """The plain text of a paper and its title and authors. Files not in `texts` are looked for in `folder`."""
    source = _with_inclusions(texts, main, folder)
    body = source.partition("\\begin{document}")[2] or source
    body = body.split("\\end{document}")[0]
    macros = _macros(source)
    body = _without_definitions(body)
    about = {key: found for key in ("title", "author") if (found := _plain(_argument_of(key, source), macros))}
    abstract = "" if "\\begin{abstract}" in body else _argument_of("abstract", source)
    body = _without(("title", "author", "abstract"), body)
    parts = [about.get("title", ""), about.get("author", ""), _plain(abstract, macros), _plain(body, macros)]
    if "author" in about:
        about["author"] = about["author"].replace("\n", ", ")[:500]
    return "\n\n".join(part for part in parts if part) + "\n", about


def _with_inclusions(texts: dict[str, str], main: str, folder: Path | None) -> str:
    """The main file without comments, each included file in its place, once on the way down and never from outside."""
    left = INCLUSIONS

    def expanded(name: str, above: tuple[str, ...]) -> str:
        nonlocal left
        text = _COMMENT.sub(r"\1", _without_verbatim_percent(texts[name]).replace("\r\n", "\n"))

        def put(match: re.Match) -> str:
            nonlocal left
            found = _found_file(match[1] or match[2], main, name, texts, folder)
            left -= 1
            return expanded(found, (*above, found)) if found and found not in above and left > 0 else ""

        return _INCLUDE.sub(put, text)

    return expanded(main, (main,))


def _without_verbatim_percent(text: str) -> str:
    """Per cent signs of programs and addresses escaped, so that they are no comments."""
    text = _VERBATIM.sub(lambda match: re.sub(r"(?<!\\)%", r"\\%", match[0]), text)
    written = r"\\(?:url|href)\{[^}\n]*\}|\\(?:verb|lstinline)\*?([^\w\s{]).*?\1"
    return re.sub(written, lambda match: re.sub(r"(?<!\\)%", r"\\%", match[0]), text)


def _found_file(wanted: str, main: str, including: str, texts: dict[str, str], folder: Path | None) -> str | None:
    """The key in `texts` of an included file, read from the folder where need be; None where there is none inside."""
    wanted = wanted.strip().strip('"')
    if not wanted or wanted.startswith("/") or ".." in wanted.split("/"):
        return None
    beside = [PurePosixPath(name).parent / wanted for name in (main, including)]
    for name in [f"{place}{suffix}" for place in (wanted, *beside) for suffix in ("", ".tex")]:
        if name in texts:
            return name
        path = folder / name if folder else None
        if path and path.is_file() and path.resolve().is_relative_to(folder.resolve()):
            text = decode_book(path.read_bytes()[:PAPER_BYTES])
            if text is not None:
                texts[name] = text
                return name
    return None


def _macros(source: str) -> dict[str, tuple[int, str | None, str]]:
    """Of each macro the paper defines: how many arguments it takes, the default of the first, what it stands for."""
    macros = {}
    for match in _DEFINITION.finditer(source):
        body, _ = _group(source, match.end())
        if "DeclareMathOperator" in match[0]:
            body = f"\\operatorname{{{body}}}"
        default = match[4][1:-1] if match[4] else None
        macros[match[1] or match[2]] = (int(match[3] or 0), default, body)
    for match in _SHORT_DEFINITION.finditer(source):
        macros[match[1]] = (len(match[2]) // 2, None, _group(source, match.end())[0])
    return {name: macro for name, macro in macros.items() if name not in _HEADING and name not in _DROPPED}


def _without_definitions(body: str) -> str:
    for pattern in (_DEFINITION, _SHORT_DEFINITION):
        out, at = [], 0
        for match in pattern.finditer(body):
            if match.start() >= at:
                out.append(body[at : match.start()])
                at = _group(body, match.end())[1]
        body = "".join([*out, body[at:]])
    return body


def _expanded(text: str, macros: dict[str, tuple[int, str | None, str]]) -> str:
    """The text with the paper's own macros put in, as far as `EXPANSION_CHARS` go."""
    if not macros:
        return text
    pattern = re.compile(r"\\(" + "|".join(sorted(map(re.escape, macros), key=len, reverse=True)) + r")(?![A-Za-z])")
    left = EXPANSION_CHARS

    def expanded(text: str, depth: int) -> str:
        nonlocal left
        out, at = [], 0
        while match := pattern.search(text, at):
            out.append(text[at : match.start()])
            body, at = _called(text, match.end(), *macros[match[1]])
            left -= len(body) + 50
            if depth < EXPANSION_DEPTH and left > 0:
                out.append(expanded(body, depth + 1))
        return "".join([*out, text[at:]])

    return expanded(text, 0)


def _called(text: str, at: int, count: int, default: str | None, body: str) -> tuple[str, int]:
    """What a macro stands for with the arguments that follow a place, and where they end."""
    values = []
    if default is not None:
        optional = re.compile(r"\s*\[([^\]]*)\]").match(text, at)
        values.append(optional[1] if optional else default)
        at = optional.end() if optional else at
    while len(values) < count:
        value, at = _argument(text, at)
        values.append(value)
    body = re.sub(r"#(\d)", lambda match: values[int(match[1]) - 1] if 0 < int(match[1]) <= count else "", body)
    named = not count and re.search(r"\\[A-Za-z]+$", body)  # `\name x` with \name as `\alpha` is not `\alphax`
    return body + (" " if named and text[at : at + 1].isalpha() else ""), at


def _argument(text: str, at: int) -> tuple[str, int]:
    """The argument that starts at a place, a group or one character, and where it ends."""
    while at < len(text) and text[at] in " \t\n":
        at += 1
    if text[at : at + 1] == "{":
        return _group(text, at)
    command = re.match(r"\\(?:[A-Za-z]+|.)", text[at : at + 40])
    return (command[0], at + command.end()) if command else (text[at : at + 1], at + 1)


_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


def _group(text: str, at: int) -> tuple[str, int]:
    """What stands between the brace at a place and the one that closes it, and where that ends."""
    depth = 0
    for match in _BRACES.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return text[at + 1 : match.start()], match.end()
    return text[at + 1 :], len(text)


def _argument_of(command: str, text: str) -> str:
    match = re.search(rf"\\{command}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text)
    return _group(text, match.end())[0] if match else ""


def _without(commands: tuple[str, ...], text: str) -> str:
    for command in commands:
        while match := re.search(rf"\\{command}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text):
            text = text[: match.start()] + text[_group(text, match.end())[1] :]
    return text


def _plain(text: str, macros: dict) -> str:
    """LaTeX as plain text; formulas and programs are held aside and put back as they were written."""
    held: list[str] = []

    def hold(written: str) -> str:
        held.append(written)
        return f"\x02{len(held) - 1}\x03"

    text = re.sub("[\x02\x03]", "", text)
    text = _VERBATIM.sub(lambda match: "\n\n" + hold(match[2].strip("\n").replace("\\%", "%")) + "\n\n", text)
    text = re.sub(r"\\(?:verb|lstinline)\*?([^\w\s{])(.*?)\1", lambda match: hold(match[2].replace("\\%", "%")), text)
    text = _MATH.sub(lambda match: _formula(match, hold), _expanded(text, macros))
    text = _tidy(_words(_environments(text)))
    while _HELD.search(text):
        text = _HELD.sub(lambda match: held[int(match[1])], text)
    return text


def _formula(match: re.Match, hold: Callable[[str], str]) -> str:
    """A formula between single dollar signs in a line, on a line of its own between double ones."""
    inline = match[2] or match[3]
    written = inline or match[1] or match[4] or match[6]
    written = re.sub(r"\\(?:label|tag)\*?\{[^}]*\}|\\(?:nonumber|notag)\b", "", written)
    written = " ".join(written.split())
    if not written:
        return ""
    if inline:
        return hold(f"${written}$")
    if match[5] and ("&" in written or "\\\\" in written):
        written = f"\\begin{{aligned}} {written} \\end{{aligned}}"
    return "\n\n" + hold(f"$${written}$$") + "\n\n"


def _environments(text: str) -> str:
    """Pictures and the bibliography out, of figures and tables the captions kept, lists with marks."""
    for name in _WITHOUT_TEXT:
        text = re.sub(rf"\\begin\{{{name}\*?\}}.*?\\end\{{{name}\*?\}}", "", text, flags=re.DOTALL)
    floats = "|".join(_FLOATS)
    text = re.sub(rf"\\begin\{{((?:{floats})\*?)\}}.*?\\end\{{\1\}}", _captions, text, flags=re.DOTALL)
    text = re.sub(r"\\begin\{((?:tabular|longtable|array|tabularx)\*?)\}.*?\\end\{\1\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\\begin\{abstract\}", "\n\nAbstract\n\n", text)
    text = _STATEMENT.sub(_statement, text)
    text = _ITEM.sub(lambda match: "\n- " + (f"{match[1]} " if match[1] else ""), text)
    return re.sub(r"\\(?:begin|end)\s*\{[^}]*\}(?:\[[^\]]*\])?(?:\{[\d.]+\\(?:text|line)width\})?", "\n\n", text)


def _statement(match: re.Match) -> str:
    return f"\n\n{match[1].capitalize()}{f' ({match[2]})' if match[2] else ''}. "


def _captions(match: re.Match) -> str:
    text, found = match[0], []
    for caption in re.finditer(r"\\caption\*?\s*(?:\[[^\]]*\])?\s*(?=\{)", text):
        found.append(_group(text, caption.end())[0])
    return "\n\n" + "\n\n".join(found) + "\n\n"


def _words(text: str) -> str:
    """Commands out, their text kept; headings on lines of their own; accents and signs as characters."""
    text = _ACCENT.sub(_accented, text)
    text = re.sub(r"\\\\(?:\[[^\]]*\])?", "\n", text)
    out, at = [], 0
    while match := _COMMAND.search(text, at):
        out.append(text[at : match.start()])
        kept, at = _command(text, match)
        out.append(kept)
    text = "".join([*out, text[at:]])
    text = re.sub(r"\\[%&#$_{} ,;:!/@-]|~|``|''|-{2,3}|[{}]|\\(?=\s|$)", lambda match: _SYMBOLS[match[0]], text)
    return text


def _command(text: str, match: re.Match) -> tuple[str, int]:
    """What stands for a command, and where the text goes on."""
    name, at = match[1], match.end()
    if name in _HEADING:
        _, at = _optional(text, at)
        title, at = _argument(text, at)
        return f"\n\n{_words(title).strip()}\n\n", at
    if name in _DROPPED or name in _LAST_IS_TEXT:
        arguments = []
        while True:
            optional, at = _optional(text, at)
            if not optional and text[at : at + 1] != "{":
                break
            if not optional:
                argument, at = _group(text, at)
                arguments.append(argument)
        return (_words(arguments[-1]) if arguments and name in _LAST_IS_TEXT else ""), at
    if name in _NAMED:
        return _NAMED[name], at
    if name == "footnote":
        note, at = _argument(text, at)
        return f" ({_words(note).strip()})", at
    return "", _optional(text, at)[1]  # the text of its arguments stays, the braces go


def _optional(text: str, at: int) -> tuple[bool, int]:
    """Whether arguments in brackets stand at a place, and where they end."""
    match = re.compile(r"(?:\[[^\]\n]{0,200}\])+").match(text, at)
    return bool(match), match.end() if match else at


def _accented(match: re.Match) -> str:
    import unicodedata

    letter = (match[3] or match[4]).strip("\\")
    return unicodedata.normalize("NFC", letter + _ACCENTS[match[1] or match[2]])


def _tidy(text: str) -> str:
    """Paragraphs as lines, one blank line between them, no space left by what was taken out."""
    paragraphs = []
    for block in re.split(r"\n[ \t]*\n\s*", text):
        joined = ""
        for line in filter(None, (" ".join(line.split()) for line in block.split("\n"))):
            joined += (("\n" if line.startswith("- ") else " ") if joined else "") + line
        joined = re.sub(r"(?:\s*\(\s*[,;]*\s*\)|\s*\[\s*[,;]*\s*\])(?=[\s.,;:]|$)", "", joined)
        joined = re.sub(r" +([.,;:)])", r"\1", joined)
        if re.search(r"\w", joined):
            paragraphs.append(joined)
    return "\n\n".join(paragraphs)
