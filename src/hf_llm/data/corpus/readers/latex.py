"""Turn papers in LaTeX into text: one document per paper, prose with headings, mathematics as it is written.

A paper is a .tex file, or an archive of one (arXiv's .tar.gz, or its single gzipped file). In an archive of archives,
as arXiv's monthly ones, each inner archive is a paper. Included files are inserted into the main file; macros that the
paper defines are expanded; comments, the preamble, citations, labels, pictures and the bibliography are removed;
captions and footnotes are kept. Only Python's regular expressions are used: pylatexenc turns formulas into look-alike
characters and does not know macros that a paper defines.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from hf_llm.data.corpus.readers.document import RawDocument
from hf_llm.data.files.archives import extract_members, is_archive
from hf_llm.data.files.compressed import COMPRESSED_SUFFIXES, InputFile, count_damage, open_file
from hf_llm.data.files.read_errors import NO_TEXT, ReadErrors
from hf_llm.data.files.text_encoding import decode_text
from hf_llm.data.files.text_files import split_text

if TYPE_CHECKING:
    from hf_llm.data.corpus.config import Source

PAPER_BYTES = 32 << 20  # the most LaTeX that is read of one paper
TAR_MAGIC_OFFSET = 257
TAR_MAGIC = b"ustar"
CLASS_BYTES = 100_000  # how much of a file's beginning is searched for \documentclass
AUTHOR_CHARS = 500
MAX_INCLUSIONS = 500  # included files in one paper; more are taken for a loop
# A macro whose expansion goes deeper, or takes more steps or characters, is left as written: it is taken for a loop.
MAX_EXPANSION_DEPTH = 100
MAX_EXPANSION_STEPS = 5_000
MAX_EXPANSION_CHARS = 500_000
STEPS_PER_CALL = 50  # more, for each macro that the paper calls in the arguments of another
MAX_ARGUMENT_TOKENS = 1_000  # before the text that ends an argument; TeX would read to the end of the paragraph
EXPANSION_CHARS = 8 << 20  # of all macros of a paper together; those after it are left as written
MAX_EXPANSION_RATIO = 20  # or so many times the paper's own length, if that is more

_TEX_SUFFIXES = {".tex", ".ltx", ".latex"}
_DOCUMENT_CLASS = re.compile(r"^[^%\n]*\\document(?:class|style)\b", re.MULTILINE)
_COMMENT = re.compile(r"(?<!\\)((?:\\\\)*)%.*?(?:\n[ \t]*|$)")
_INCLUDE = re.compile(r"\\(?:input|include|subfile)\s*(?:\{([^}]*)\}|([\w./-]+))")
_DEFINITION = re.compile(
    r"\\(?:(?:re)?newcommand|providecommand|DeclareRobustCommand|DeclareMathOperator)\*?\s*"
    r"(?:\{\s*\\([A-Za-z@]+)\s*\}|\\([A-Za-z@]+))\s*(?:\[(\d)\])?\s*(\[[^\]]*\])?\s*(?=\{)"
)
_SHORT_DEFINITION = re.compile(r"\\(?:def|gdef|edef|xdef)\s*\\([A-Za-z@]+)([^{}\n]{0,80})(?=\{)")
# What makes a macro a program, which only TeX can run: conditions, and the order in which things are expanded.
_PROGRAM = re.compile(
    r"\\(?:if[A-Za-z@]*|else|fi|or|expandafter|noexpand|csname|futurelet|let|[gex]?def|newcommand|loop|repeat|the)"
    r"(?![A-Za-z@])"
)
_INTERNAL_COMMAND = re.compile(r"\\([A-Za-z@]*@[A-Za-z@]+|[A-Za-z@]+@[A-Za-z@]*)")
_BRANCHES = ("@ifstar", "@ifnextchar")  # the two ways to choose that are carried out
# What TeX reads of a file one by one; `@` belongs to names only in the bodies of macros.
_TOKEN = re.compile(r"\\(?:[A-Za-z]+|.)|[{}]|[^\\{}]+|\\", re.DOTALL)
_BODY_TOKEN = re.compile(r"#[1-9]|\\(?:[A-Za-z@]+|.)|[{}#]|[^\\{}#]+|\\", re.DOTALL)
_COMMAND_WORD = re.compile(r"\\[A-Za-z@]+")
_MATH = re.compile(
    r"\$\$(.+?)\$\$|(?<!\\)\$((?:[^$\\\n]|\\.|\n(?![ \t]*\n))+?)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]"
    r"|\\begin\{((?:equation|align|gather|multline|eqnarray|math|displaymath|flalign|alignat)\*?)\}(.+?)\\end\{\5\}",
    re.DOTALL,
)
# Stands in for a formula or a program, which is put back at the end (`_to_plain_text`).
_PLACEHOLDER = re.compile("\x02(\\d+)\x03")

_ENVIRONMENTS_WITHOUT_TEXT = (
    "tikzpicture", "pgfpicture", "thebibliography", "filecontents", "picture", "comment", "CCSXML",
)  # fmt: skip
_FLOAT_ENVIRONMENTS = (
    "figure", "table", "wrapfigure", "wraptable", "sidewaystable", "sidewaysfigure", "algorithm", "SCfigure",
)  # fmt: skip
_VERBATIM = re.compile(
    r"\\begin\{(verbatim|lstlisting|minted)\*?\}(?:\[[^\]]*\])?(?:\{\w+\})?(.*?)\\end\{\1\*?\}", re.DOTALL
)
# Addresses and programs within a line, in which a per cent sign does not begin a comment.
_ADDRESS_OR_PROGRAM = re.compile(r"\\(?:url|href)\{[^}\n]*\}|\\(?:verb|lstinline)\*?([^\w\s{]).*?\1")
_INLINE_PROGRAM = re.compile(r"\\(?:verb|lstinline)\*?([^\w\s{])(.*?)\1")
_ITEM = re.compile(r"\s*\\item\b\s*(?:\[([^\]]*)\])?\s*")
_STATEMENT = re.compile(
    r"\\begin\{(proof|theorem|lemma|proposition|corollary|definition|remark|example)\}(?:\[([^\]]*)\])?"
)
_HEADING_COMMANDS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph")
# Commands that are removed with all their arguments.
_DROPPED_COMMANDS = {
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
# Commands whose last argument is text, those before it are not.
_LAST_ARGUMENT_IS_TEXT = {"textcolor", "colorbox", "resizebox", "scalebox", "href", "hypertarget", "raisebox", "parbox"}
_SYMBOL = re.compile(r"\\[%&#$_{} ,;:!/@-]|~|``|''|-{2,3}|[{}]|\\(?=\s|$)")
_SYMBOLS = {
    "\\%": "%", "\\&": "&", "\\#": "#", "\\$": "$", "\\_": "_", "\\{": "{", "\\}": "}", "\\ ": " ", "\\,": " ",
    "\\;": " ", "\\:": " ", "\\!": "", "\\/": "", "\\-": "", "\\@": "", "~": " ", "``": "“", "''": "”", "---": "—",
    "--": "–", "{": "", "}": "", "\\": "",
}  # fmt: skip
_CHARACTER_COMMANDS = {
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
_OPTIONAL_ARGUMENTS = re.compile(r"(?:\[[^\]\n]{0,200}\])+")
_DEFAULT_ARGUMENT = re.compile(r"\s*\[([^\]]*)\]")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)


@dataclass
class _Macro:
    """A macro that the paper defines."""

    argument_count: int
    default: str | None  # of the first argument, which is optional then
    body: str
    delimiters: tuple[str, ...] = ()  # the text before the first argument and after each one, if there is any
    is_program: bool = False  # then its calls are left as they are written


def read(path: Path, errors: ReadErrors, source: "Source", max_chars: int) -> Iterator[RawDocument]:
    """Yield the pieces of each paper at a path, with its title and authors.

    A .tex file that is a part of another file's paper yields nothing: it is read with that one. What has no LaTeX at
    all (papers withdrawn from arXiv, or only in PDF) is counted as dropped.
    """
    if is_archive(path) or path.suffix.lower() in COMPRESSED_SUFFIXES:
        for files in _read_papers(path, errors):
            yield from _convert_files(files, str(path), errors, max_chars)
    elif _is_part_of_paper(path):
        errors.records += 1
        errors.leave_out("part of another file's paper", str(path))
    else:
        with open(path, "rb") as file:
            files = {path.name: _read_start(file, str(path), errors)}
        yield from _convert_files(files, str(path), errors, max_chars, path.parent)


def _is_part_of_paper(path: Path) -> bool:
    """Whether a file has no document class, while another one in its folder or the folder above has one."""
    if _has_document_class(path):
        return False
    neighbours = [*path.parent.glob("*.tex"), *path.parent.parent.glob("*.tex")]
    return any(_has_document_class(other) for other in neighbours if other != path and other.is_file())


def _has_document_class(path: Path) -> bool:
    with open(path, "rb") as file:
        start = file.read(CLASS_BYTES).decode("latin-1")
    return bool(_DOCUMENT_CLASS.search(start))


def _read_papers(path: Path, errors: ReadErrors) -> Iterator[dict[str, bytes]]:
    """Yield for each paper in an archive its LaTeX files by name. A single compressed file is a tar or a .tex file."""
    if is_archive(path):
        yield from _read_archive(path, errors, path.name)
        return

    with count_damage(path, errors), open_file(path) as file:
        file.seek(TAR_MAGIC_OFFSET)
        is_tar = file.read(len(TAR_MAGIC)) == TAR_MAGIC
        file.seek(0)
        if is_tar:
            yield from _read_archive(path, errors, f"paper.tar{path.suffix}")
        else:
            yield {path.stem: _read_start(file, str(path), errors)}


def _read_archive(path: Path, errors: ReadErrors, archive_name: str) -> Iterator[dict[str, bytes]]:
    """Yield the papers of the archives within an archive, then the paper of its own LaTeX files."""
    files = {}
    size = 0
    for name, file in extract_members(path, errors, archive_name):
        suffix = PurePosixPath(name).suffix.lower()
        if is_archive(file) or suffix in COMPRESSED_SUFFIXES:
            yield from _read_papers(file, errors)
        elif suffix not in _TEX_SUFFIXES:
            errors.records += 1
            errors.leave_out("file of a paper that is not LaTeX", f"{path}, {name}")
        elif size >= PAPER_BYTES:
            errors.records += 1
            errors.drop_record(f"beyond {PAPER_BYTES >> 20} MiB of one paper", f"{path}, {name}")
        else:
            with open(file, "rb") as member:
                files[name] = _read_start(member, f"{path}, {name}", errors)
            size += len(files[name])
    if files:
        yield files


def _read_start(file: InputFile, where: str, errors: ReadErrors) -> bytes:
    """Read a file up to `PAPER_BYTES`; what is after them counts as one record that is left out."""
    content = file.read(PAPER_BYTES)
    if len(content) == PAPER_BYTES and file.read(1):
        errors.records += 1
        errors.leave_out(f"LaTeX after the first {PAPER_BYTES >> 20} MiB of a file", where)
    return content


def _convert_files(
    files: dict[str, bytes], where: str, errors: ReadErrors, max_chars: int, folder: Path | None = None
) -> Iterator[RawDocument]:
    """Yield the pieces of the paper that these files hold."""
    errors.records += 1
    texts = {}
    for name, content in files.items():
        text = decode_text(content)
        if text is not None:
            texts[name] = text

    main = _choose_main_file(texts)
    if main is None or "\\" not in texts[main]:
        errors.drop_record("no LaTeX", where)
        return
    try:
        text, about = convert_paper(texts, main, folder)
    except RecursionError:
        errors.drop_record("LaTeX nested too deep", where)
        return
    is_empty = True
    for piece in split_text(text, max_chars):
        yield RawDocument(piece, about=dict(about), records=1 if is_empty else 0)
        is_empty = False
    if is_empty:
        errors.leave_out(NO_TEXT, where)


def _choose_main_file(texts: dict[str, str]) -> str | None:
    """Choose the file with a document class and the most text, of those nearest to the top; the longest if none has."""
    with_class = [name for name, text in texts.items() if _DOCUMENT_CLASS.search(text)]
    with_body = [name for name in with_class if "\\begin{document}" in texts[name]]
    candidates = with_body or with_class or list(texts)

    def precedence(name: str) -> tuple[int, int, str]:
        depth = name.count("/")
        return -depth, len(texts[name]), name

    return max(candidates, key=precedence, default=None)


def convert_paper(texts: dict[str, str], main: str, folder: Path | None = None) -> tuple[str, dict[str, str | int]]:
    """Convert a paper to plain text, and return that with its title and authors.

    `unexpanded_macros` beside them is how many calls of macros without end are left in the text as they were written.

    `texts` are its files by name, `main` the name of the main one; files not in `texts` are looked for in `folder`.
    """
    source = _insert_included_files(texts, main, folder)
    macros = _find_macros(source)
    body = source.partition("\\begin{document}")[2] or source
    body = body.split("\\end{document}")[0]
    body = _remove_definitions(body)

    title, _ = _to_plain_text(_find_argument("title", source), macros)
    author, _ = _to_plain_text(_find_argument("author", source), macros)
    abstract = ""
    if "\\begin{abstract}" not in body:
        abstract, _ = _to_plain_text(_find_argument("abstract", source), macros)
    body, unexpanded_calls = _to_plain_text(_remove_commands(("title", "author", "abstract"), body), macros)

    about: dict[str, str | int] = {}
    if unexpanded_calls:
        about["unexpanded_macros"] = unexpanded_calls
    if title:
        about["title"] = title
    if author:
        about["author"] = author.replace("\n", ", ")[:AUTHOR_CHARS]
    parts = [title, author, abstract, body]
    return "\n\n".join(part for part in parts if part) + "\n", about


def _insert_included_files(texts: dict[str, str], main: str, folder: Path | None) -> str:
    """Return the main file without comments, with each included file in its place.

    A file is never included within itself, and never from outside of the folder.
    """
    remaining_inclusions = MAX_INCLUSIONS

    def expand_file(name: str, including: tuple[str, ...]) -> str:
        text = _escape_percent_signs(texts[name]).replace("\r\n", "\n")
        text = _COMMENT.sub(r"\1", text)

        def expand_inclusion(match: re.Match) -> str:
            nonlocal remaining_inclusions
            wanted = match[1] or match[2]
            included = _find_included_file(wanted, main, name, texts, folder)
            remaining_inclusions -= 1
            if not included or included in including or remaining_inclusions <= 0:
                return ""
            return expand_file(included, (*including, included))

        return _INCLUDE.sub(expand_inclusion, text)

    return expand_file(main, (main,))


def _escape_percent_signs(text: str) -> str:
    """Escape the per cent signs of programs and addresses, so that they are not read as comments."""

    def escape(match: re.Match) -> str:
        return re.sub(r"(?<!\\)%", r"\\%", match[0])

    text = _VERBATIM.sub(escape, text)
    return _ADDRESS_OR_PROGRAM.sub(escape, text)


def _find_included_file(
    wanted: str, main: str, including: str, texts: dict[str, str], folder: Path | None
) -> str | None:
    """Find the key in `texts` of an included file, which is read from the folder if need be; None if there is none."""
    wanted = wanted.strip().strip('"')
    if not wanted or wanted.startswith("/") or ".." in wanted.split("/"):
        return None

    beside_main = PurePosixPath(main).parent / wanted
    beside_including = PurePosixPath(including).parent / wanted
    for place in (wanted, beside_main, beside_including):
        for suffix in ("", ".tex"):
            name = f"{place}{suffix}"
            if name in texts or (folder and _read_included_file(name, texts, folder)):
                return name
    return None


def _read_included_file(name: str, texts: dict[str, str], folder: Path) -> bool:
    """Read a file of the folder into `texts`; False if there is none inside of it, or it is not text."""
    path = folder / name
    if not path.is_file() or not path.resolve().is_relative_to(folder.resolve()):
        return False
    text = decode_text(path.read_bytes()[:PAPER_BYTES])
    if text is None:
        return False
    texts[name] = text
    return True


def _find_macros(source: str) -> dict[str, _Macro]:
    """Find the macros the paper defines, by name."""
    macros = {}
    for match in _DEFINITION.finditer(source):
        body, _ = _read_group(source, match.end())
        if "DeclareMathOperator" in match[0]:
            body = f"\\operatorname{{{body}}}"
        name = match[1] or match[2]
        argument_count = int(match[3] or 0)
        default = match[4][1:-1] if match[4] else None
        macros[name] = _Macro(argument_count, default, body)

    for match in _SHORT_DEFINITION.finditer(source):
        name, parameters = match.groups()  # such as `#1#2`, or `[#1]#2`
        body, _ = _read_group(source, match.end())
        delimiters = tuple(part.strip() for part in re.split(r"#\d", parameters))
        macros[name] = _Macro(len(delimiters) - 1, None, body, delimiters if any(delimiters) else ())

    for name in (*_HEADING_COMMANDS, *_DROPPED_COMMANDS):
        macros.pop(name, None)
    _mark_programs(macros)
    return macros


def _mark_programs(macros: dict[str, _Macro]) -> None:
    """Mark the macros that are programs, or that use an inner one (with `@` in its name) that is one or is unknown."""
    for macro in macros.values():
        has_odd_delimiter = any("\\" in text and not _COMMAND_WORD.fullmatch(text) for text in macro.delimiters)
        macro.is_program = has_odd_delimiter or bool(_PROGRAM.search(macro.body))

    is_changed = True
    while is_changed:
        is_changed = False
        for macro in macros.values():
            inner_names = set(_INTERNAL_COMMAND.findall(macro.body)).difference(_BRANCHES)
            hands_over = any(name not in macros or macros[name].is_program for name in inner_names)
            if hands_over and not macro.is_program:
                macro.is_program = True
                is_changed = True


def _remove_definitions(body: str) -> str:
    for pattern in (_DEFINITION, _SHORT_DEFINITION):
        parts = []
        position = 0
        for match in pattern.finditer(body):
            if match.start() >= position:  # if not, it is inside another definition
                parts.append(body[position : match.start()])
                _, position = _read_group(body, match.end())
        body = "".join([*parts, body[position:]])
    return body


def _expand_macros(text: str, macros: dict[str, _Macro], protect: Callable[[str], str]) -> tuple[str, int]:
    """Expand the paper's own macros in the text. Returns it, and how many calls were left as written (`protect`)."""
    if not macros:
        return text, 0
    expander = _MacroExpander(text, macros, protect)
    return expander.expand(), expander.unexpanded_calls


class _Token(NamedTuple):
    """A token of the paper, or one that a macro became."""

    text: str
    depth: int = 0  # how many macros it came out of, one within another
    caller: str = ""  # the macro of the paper that it came out of


class _MacroExpander:
    """Expands macros as TeX does: what a macro becomes is read again, followed by the rest of the text.

    A macro that comes to no end is found by its depth. From then on its calls are left as they are written; the call of
    the paper in which it was found is expanded once more without it.
    """

    def __init__(self, text: str, macros: dict[str, _Macro], protect: Callable[[str], str]):
        self.text = text
        self.position = 0
        self.macros = macros
        self.protect = protect
        self.pending: list[_Token] = []  # read before the text; the next one is the last
        self.endless: set[str] = set()  # names of the paper's macros that come to no end
        self.unexpanded_calls = 0
        self.output: list[str] = []
        self.remaining_chars = max(EXPANSION_CHARS, MAX_EXPANSION_RATIO * len(text))
        # `@` is no letter in the text of a paper.
        longest_first = sorted((re.escape(name) for name in macros if "@" not in name), key=len, reverse=True)
        self.call = re.compile(r"\\(" + "|".join(longest_first or ["(?!)"]) + r")(?![A-Za-z])")

    def expand(self) -> str:
        while match := self.call.search(self.text, self.position):
            self.output.append(self.text[self.position : match.start()])
            self.position = match.start()
            self._expand_call()
        self.output.append(self.text[self.position :])
        return "".join(self.output)

    def _expand_call(self) -> None:
        """Expand the call that the text has here, with everything that it becomes."""
        start = self.position
        output_length = len(self.output)
        unexpanded_calls = self.unexpanded_calls
        while True:
            token = self._read_token()
            assert token is not None, "a macro is called here"
            self.pending.append(token)
            endless = self._expand_pending()
            if endless is None:
                return

            self.endless.add(endless)
            self.position = start
            self.pending.clear()
            del self.output[output_length:]
            self.unexpanded_calls = unexpanded_calls

    def _expand_pending(self) -> str | None:
        """Expand until no token is pending. Returns the macro of the paper that comes to no end, None if all do."""
        steps = MAX_EXPANSION_STEPS
        chars = MAX_EXPANSION_CHARS
        while self.pending:
            token = self.pending.pop()
            name = token.text[1:] if token.text[0] == "\\" else ""
            if name in _BRANCHES:
                self._choose_branch(name)
                continue
            macro = self.macros.get(name)
            if macro is None:
                self._write(token.text)
                continue
            if macro.is_program or name in self.endless or self.remaining_chars <= 0:
                self._leave_as_written(token.text, macro)
                continue
            caller = token.caller or name
            if token.depth >= MAX_EXPANSION_DEPTH:
                return caller

            body = self._call_macro(macro, token.depth + 1, caller)
            if body is None:
                self._leave_as_written(token.text, macro)
                continue
            size = sum(len(part.text) for part in body)
            self.remaining_chars -= size
            if token.depth:
                steps -= 1
                chars -= size
            else:
                steps += STEPS_PER_CALL
            if steps < 0 or chars < 0:
                return caller
            self.pending += reversed(body)
        return None

    def _call_macro(self, macro: _Macro, depth: int, caller: str) -> list[_Token] | None:
        """Return a macro's body with the arguments that follow in their places; None if others follow than it takes."""
        if macro.delimiters:
            delimited = self._read_delimited_arguments(macro.delimiters)
            return None if delimited is None else self._insert_arguments(macro, delimited, depth, caller)

        arguments: list[list[_Token]] = []
        if macro.default is not None:
            optional = self._read_optional_argument()
            arguments.append(_tokenize(macro.default, depth, caller) if optional is None else optional)
        while len(arguments) < macro.argument_count:
            arguments.append(self._read_argument())
        return self._insert_arguments(macro, arguments, depth, caller)

    def _insert_arguments(self, macro: _Macro, arguments: list[list[_Token]], depth: int, caller: str) -> list[_Token]:
        body: list[_Token] = []
        for token in _tokenize(macro.body, depth, caller):
            if token.text[0] != "#":
                body.append(token)
            elif len(token.text) == 2 and int(token.text[1]) <= len(arguments):
                body += arguments[int(token.text[1]) - 1]
        return body

    def _choose_branch(self, name: str) -> None:
        """Choose by the next character, as `\\@ifstar{with}{without}` and `\\@ifnextchar[{with}{without}` do."""
        wanted = "*"
        if name == "@ifnextchar":
            wanted = _join_tokens(self._read_argument())
        with_it = self._read_argument()
        without_it = self._read_argument()

        following = self._read_filled_token()
        has_it = False
        if following is not None:
            has_it = following.text.startswith("{" if wanted == "\\bgroup" else wanted or "\0")
            if has_it and name == "@ifstar":
                following = following._replace(text=following.text[1:])
            if following.text:
                self.pending.append(following)
        self.pending += reversed(with_it if has_it else without_it)

    def _leave_as_written(self, token: str, macro: _Macro) -> None:
        written = [token]
        if macro.default is not None:
            optional = self._read_optional_argument()
            if optional is not None:
                written.append(f"[{_join_tokens(optional)}]")
        if not macro.delimiters:
            for _ in range(macro.argument_count - (macro.default is not None)):
                written.append(f"{{{_join_tokens(self._read_argument())}}}")
        while self._stands_before("{"):  # a program may take more
            written.append(f"{{{_join_tokens(self._read_argument())}}}")
        self.unexpanded_calls += 1
        self._write(self.protect("".join(written)))

    def _write(self, token: str) -> None:
        # With \name defined as `\alpha`, `\name x` must not become `\alphax`.
        if token[0].isalpha() and self.output and _COMMAND_WORD.fullmatch(self.output[-1]):
            self.output.append(" ")
        self.output.append(token)
        if (
            not self.pending
            and _COMMAND_WORD.fullmatch(token)
            and self.text[self.position : self.position + 1].isalpha()
        ):
            self.output.append(" ")

    def _read_token(self) -> _Token | None:
        """Read the next token; None at the end of the text."""
        if self.pending:
            return self.pending.pop()
        match = _TOKEN.match(self.text, self.position)
        if not match:
            return None
        self.position = match.end()
        return _Token(match[0])

    def _read_filled_token(self) -> _Token | None:
        """Read the next token that is not only white space, without the white space before it."""
        while True:
            token = self._read_token()
            if token is None:
                return None
            text = token.text.lstrip()
            if text:
                return token._replace(text=text)

    def _stands_before(self, mark: str) -> bool:
        """Whether the next token is this one."""
        token = self._read_token()
        if token is None:
            return False
        self.pending.append(token)
        return token.text == mark

    def _read_delimited_arguments(self, delimiters: tuple[str, ...]) -> list[list[_Token]] | None:
        """Read arguments with text before, between or after them; None, with nothing read, if it is not there."""
        consumed: list[_Token] = []
        arguments = []
        for number, delimiter in enumerate(delimiters):
            if number and not delimiter:
                argument = self._read_argument()
                consumed += [_Token("{"), *argument, _Token("}")]
                arguments.append(argument)
                continue
            if not delimiter:
                continue  # nothing stands before the first argument
            skipped = self._read_up_to(delimiter, consumed)
            if skipped is None or (not number and _join_tokens(skipped).strip()):
                self.pending += reversed(consumed)
                return None
            if number:
                arguments.append(skipped)
        return arguments

    def _read_up_to(self, delimiter: str, consumed: list[_Token]) -> list[_Token] | None:
        """Read the tokens before a delimiter and that; None if it is not near. What was read is added to `consumed`."""
        tokens: list[_Token] = []
        level = 0
        while len(tokens) < MAX_ARGUMENT_TOKENS:
            token = self._read_token()
            if token is None:
                return None
            text = token.text
            if level == 0 and text[0] not in "{}\\" and delimiter in text:
                before, _, after = text.partition(delimiter)
                consumed.append(token._replace(text=before + delimiter))
                if after:
                    self.pending.append(token._replace(text=after))
                return [*tokens, token._replace(text=before)] if before else tokens
            consumed.append(token)
            if level == 0 and text == delimiter:
                return tokens
            level += (text == "{") - (text == "}")
            tokens.append(token)
        return None

    def _read_argument(self) -> list[_Token]:
        """Read an argument: the tokens of a group, a command or one character."""
        first = self._read_filled_token()
        if first is None:
            return []
        text = first.text
        if text == "}":  # the call is the last thing in a group: it has no argument
            self.pending.append(first)
            return []
        if text != "{":
            if text[0] != "\\" and text[1:]:
                self.pending.append(first._replace(text=text[1:]))
                text = text[0]
            return [first._replace(text=text)]

        tokens: list[_Token] = []
        level = 1
        while True:
            token = self._read_token()
            if token is None:
                return tokens
            level += (token.text == "{") - (token.text == "}")
            if level == 0:
                return tokens
            tokens.append(token)

    def _read_optional_argument(self) -> list[_Token] | None:
        """Read an argument in brackets; None, with nothing read, if there is none."""
        first = self._read_filled_token()
        if first is None:
            return None
        if not first.text.startswith("["):
            self.pending.append(first)
            return None

        tokens: list[_Token] = []
        level = 0
        token: _Token | None = first._replace(text=first.text[1:])
        while token is not None:
            text = token.text
            level += (text == "{") - (text == "}")
            end = text.find("]") if level == 0 and text[:1] != "\\" else -1
            if end >= 0:
                tokens.append(token._replace(text=text[:end]))
                if text[end + 1 :]:
                    self.pending.append(token._replace(text=text[end + 1 :]))
                break
            tokens.append(token)
            token = self._read_token()
        return [token for token in tokens if token.text]


def _tokenize(body: str, depth: int, caller: str) -> list[_Token]:
    return [_Token(match[0], depth, caller) for match in _BODY_TOKEN.finditer(body)]


def _join_tokens(tokens: list[_Token]) -> str:
    return "".join(token.text for token in tokens)


def _read_argument(text: str, position: int) -> tuple[str, int]:
    """Read the argument at a position, a group, a command or one character. Returns it and where it ends."""
    while position < len(text) and text[position] in " \t\n":
        position += 1
    if text[position : position + 1] == "{":
        return _read_group(text, position)
    command = re.match(r"\\(?:[A-Za-z]+|.)", text[position : position + 40])
    if command:
        return command[0], position + command.end()
    return text[position : position + 1], position + 1


def _read_group(text: str, position: int) -> tuple[str, int]:
    """Read the text between the brace at a position and the one that closes it. Returns it and where the group ends."""
    depth = 0
    for match in _BRACES.finditer(text, position):
        if match[0] == "{":
            depth += 1
        elif match[0] == "}":
            depth -= 1
        if depth == 0:
            return text[position + 1 : match.start()], match.end()
    return text[position + 1 :], len(text)


def _find_argument(command: str, text: str) -> str:
    """Return the argument of the first of these commands, empty if there is none."""
    match = _search_command(command, text)
    if not match:
        return ""
    argument, _ = _read_group(text, match.end())
    return argument


def _search_command(command: str, text: str) -> re.Match | None:
    """Find the first place where a command with an argument in braces stands; the match ends before the brace."""
    return re.search(rf"\\{command}\s*(?:\[[^\]]*\])?\s*(?=\{{)", text)


def _remove_commands(commands: tuple[str, ...], text: str) -> str:
    for command in commands:
        while match := _search_command(command, text):
            _, end = _read_group(text, match.end())
            text = text[: match.start()] + text[end:]
    return text


def _to_plain_text(text: str, macros: dict[str, _Macro]) -> tuple[str, int]:
    """Convert LaTeX to plain text. Returns it, and how many calls of macros are left in it as they were written.

    Formulas and programs are replaced by placeholders and put back unchanged.
    """
    protected: list[str] = []

    def protect(original: str) -> str:
        protected.append(original)
        return f"\x02{len(protected) - 1}\x03"

    def protect_program(match: re.Match) -> str:
        program = match[2].strip("\n").replace("\\%", "%")
        return "\n\n" + protect(program) + "\n\n"

    def protect_inline_program(match: re.Match) -> str:
        return protect(match[2].replace("\\%", "%"))

    text = re.sub("[\x02\x03]", "", text)
    text = _VERBATIM.sub(protect_program, text)
    text = _INLINE_PROGRAM.sub(protect_inline_program, text)
    text, unexpanded_calls = _expand_macros(text, macros, protect)
    text = _MATH.sub(lambda match: _format_formula(match, protect), text)
    text = _convert_environments(text)
    text = _convert_commands(text)
    text = _join_paragraphs(text)
    while _PLACEHOLDER.search(text):  # a program may stand within a formula
        text = _PLACEHOLDER.sub(lambda match: protected[int(match[1])], text)
    return text, unexpanded_calls


def _format_formula(match: re.Match, protect: Callable[[str], str]) -> str:
    """Format a formula: between single dollar signs within a line, between double ones on a line of its own."""
    display, inline, inline_bracketed, display_bracketed, environment, environment_body = match.groups()
    inline = inline or inline_bracketed
    formula = inline or display or display_bracketed or environment_body
    formula = re.sub(r"\\(?:label|tag)\*?\{[^}]*\}|\\(?:nonumber|notag)\b", "", formula)
    formula = " ".join(formula.split())
    if not formula:
        return ""
    if inline:
        return protect(f"${formula}$")
    has_alignment = "&" in formula or "\\\\" in formula
    if environment and has_alignment:
        formula = f"\\begin{{aligned}} {formula} \\end{{aligned}}"
    return "\n\n" + protect(f"$${formula}$$") + "\n\n"


def _convert_environments(text: str) -> str:
    """Remove pictures and the bibliography, keep the captions of figures and tables, mark the items of lists."""
    for name in _ENVIRONMENTS_WITHOUT_TEXT:
        text = re.sub(rf"\\begin\{{{name}\*?\}}.*?\\end\{{{name}\*?\}}", "", text, flags=re.DOTALL)
    floats = "|".join(_FLOAT_ENVIRONMENTS)
    text = re.sub(rf"\\begin\{{((?:{floats})\*?)\}}.*?\\end\{{\1\}}", _keep_captions, text, flags=re.DOTALL)
    text = re.sub(r"\\begin\{((?:tabular|longtable|array|tabularx)\*?)\}.*?\\end\{\1\}", "", text, flags=re.DOTALL)
    text = re.sub(r"\\begin\{abstract\}", "\n\nAbstract\n\n", text)
    text = _STATEMENT.sub(_format_statement, text)
    text = _ITEM.sub(_format_item, text)
    return re.sub(r"\\(?:begin|end)\s*\{[^}]*\}(?:\[[^\]]*\])?(?:\{[\d.]+\\(?:text|line)width\})?", "\n\n", text)


def _format_statement(match: re.Match) -> str:
    kind, name = match.groups()
    heading = kind.capitalize()
    if name:
        heading += f" ({name})"
    return f"\n\n{heading}. "


def _format_item(match: re.Match) -> str:
    label = match[1]
    return f"\n- {label} " if label else "\n- "


def _keep_captions(match: re.Match) -> str:
    text = match[0]
    captions = []
    for command in re.finditer(r"\\caption\*?\s*(?:\[[^\]]*\])?\s*(?=\{)", text):
        caption, _ = _read_group(text, command.end())
        captions.append(caption)
    return "\n\n" + "\n\n".join(captions) + "\n\n"


def _convert_commands(text: str) -> str:
    """Replace commands by their text, headings by lines of their own, accents and symbols by characters."""
    text = _ACCENT.sub(_compose_accent, text)
    text = re.sub(r"\\\\(?:\[[^\]]*\])?", "\n", text)
    parts = []
    position = 0
    while match := _COMMAND.search(text, position):
        parts.append(text[position : match.start()])
        replacement, position = _convert_command(text, match)
        parts.append(replacement)
    text = "".join([*parts, text[position:]])
    return _SYMBOL.sub(lambda match: _SYMBOLS[match[0]], text)


def _convert_command(text: str, match: re.Match) -> tuple[str, int]:
    """Return what replaces a command, and the position at which the text continues."""
    name = match[1]
    position = match.end()
    if name in _HEADING_COMMANDS:
        _, position = _skip_optional_arguments(text, position)
        title, position = _read_argument(text, position)
        return f"\n\n{_convert_commands(title).strip()}\n\n", position
    if name in _DROPPED_COMMANDS or name in _LAST_ARGUMENT_IS_TEXT:
        arguments, position = _read_all_arguments(text, position)
        if arguments and name in _LAST_ARGUMENT_IS_TEXT:
            return _convert_commands(arguments[-1]), position
        return "", position
    if name in _CHARACTER_COMMANDS:
        return _CHARACTER_COMMANDS[name], position
    if name == "footnote":
        note, position = _read_argument(text, position)
        return f" ({_convert_commands(note).strip()})", position

    # The text of an unknown command's arguments stays; their braces are removed later.
    _, position = _skip_optional_arguments(text, position)
    return "", position


def _read_all_arguments(text: str, position: int) -> tuple[list[str], int]:
    """Read all arguments in braces at a position, past those in brackets. Returns them and where they end."""
    arguments = []
    while True:
        has_optional, position = _skip_optional_arguments(text, position)
        if has_optional:
            continue
        if text[position : position + 1] != "{":
            return arguments, position
        argument, position = _read_group(text, position)
        arguments.append(argument)


def _skip_optional_arguments(text: str, position: int) -> tuple[bool, int]:
    """Return whether arguments in brackets stand at a position, and where they end."""
    match = _OPTIONAL_ARGUMENTS.match(text, position)
    if not match:
        return False, position
    return True, match.end()


def _compose_accent(match: re.Match) -> str:
    import unicodedata

    accent = match[1] or match[2]
    letter = (match[3] or match[4]).strip("\\")
    return unicodedata.normalize("NFC", letter + _ACCENTS[accent])


def _join_paragraphs(text: str) -> str:
    """Join each paragraph to one line, with a blank line between two, and close the gaps of what was removed."""
    paragraphs = []
    for block in re.split(r"\n[ \t]*\n\s*", text):
        paragraph = _join_lines(block)
        paragraph = re.sub(r"(?:\s*\(\s*[,;]*\s*\)|\s*\[\s*[,;]*\s*\])(?=[\s.,;:]|$)", "", paragraph)
        paragraph = re.sub(r" +([.,;:)])", r"\1", paragraph)
        if re.search(r"\w", paragraph):
            paragraphs.append(paragraph)
    return "\n\n".join(paragraphs)


def _join_lines(block: str) -> str:
    """Join the lines of a block by spaces; the items of a list stay on lines of their own."""
    joined = ""
    for line in block.split("\n"):
        line = " ".join(line.split())
        if not line:
            continue
        if joined:
            joined += "\n" if line.startswith("- ") else " "
        joined += line
    return joined
