"""Turn wiki markup into prose: templates, tables, references, files, categories and tags are removed; links keep their
words.

The brackets are replaced in one pass, innermost first; then the text is cleaned line by line. No template is expanded,
since that needs the whole wiki. Some whose words belong to the sentence (`{{convert|5|km}}`, `{{lang|fr|mot}}`) leave
those words.
Markup: https://www.mediawiki.org/wiki/Help:Formatting, https://en.wikipedia.org/wiki/Help:Wikitext
"""

import calendar
import html
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

# Namespaces whose links are not words of the text; every wiki knows the English names beside its own.
FILES_AND_CATEGORIES = frozenset({"file", "image", "media", "category"})

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
# Tags that are removed with all they hold. An opening tag that is never closed is removed alone.
_DROPPED_TAGS = (
    "ref|references|gallery|timeline|imagemap|score|graph|hiero|inputbox|mapframe|maplink|templatestyles|categorytree|"
    "dynamicpagelist|section|includeonly|templatedata|indicator|charinsert|ce|chem"
)
_EMPTY_DROPPED_TAG = re.compile(rf"<(?:{_DROPPED_TAGS})\b[^<>]*/>", re.IGNORECASE)
_DROPPED_ELEMENT = re.compile(rf"<({_DROPPED_TAGS})\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_VERBATIM = re.compile(
    r"<(math|nowiki|pre|code|source|syntaxhighlight)\b[^<>]*(?<!/)>((?:(?!<\1\b).)*?)</\1\s*>",
    re.IGNORECASE | re.DOTALL,
)
_TAG = re.compile(
    r"</?(?:ref|references|gallery|abbr|b|bdi|bdo|big|blockquote|caption|center|cite|code|dd|del|dfn|div|dl|dt|em|font|"
    r"h[1-6]|hr|i|includeonly|ins|kbd|li|math|noinclude|nowiki|ol|onlyinclude|p|poem|pre|q|rb|rp|rt|ruby|s|samp|section|"
    r"small|source|span|strike|strong|sub|sup|syntaxhighlight|table|tbody|td|templatestyles|th|time|tr|tt|u|ul|var|wbr)"
    r"\b[^<>]*>",
    re.IGNORECASE,
)
_BREAK = re.compile(r"<br\b[^<>]*>|</(?:p|li|dd|dt|tr|div|blockquote)\s*>", re.IGNORECASE)
_POWER = re.compile(r"<sup>\s*([-−+]?\d+)\s*</sup>", re.IGNORECASE)

_BRACKETS = re.compile(r"\{\{|\}\}|\[\[|\]\]|^[ \t:*#;]*\{\||^[ \t]*\|\}(?!\})", re.MULTILINE)
_WEB_LINK = re.compile(
    r"\[(?:https?:|ftp:|mailto:)?//[^\s\[\]]+[ \t]*([^\[\]\n]*)\]|\[mailto:[^\s\[\]]+[ \t]*([^\[\]\n]*)\]"
)
_QUOTES = re.compile(r"'{2,}")
_MAGIC_WORD = re.compile(r"__[A-Z]{3,}__")
_HEADING = re.compile(r"^(={1,6})[ \t]*(.*?)[ \t]*\1[ \t]*$")
_LIST = re.compile(r"^([*#:;]+)[ \t]*")
_EMPTY_PARENTHESES = re.compile(r"[ \t]*[(（][\s,;:–-]*[)）]")
_OPENED_WITH_COMMA = re.compile(r"([(（])[ \t]*[,;:][ \t,;:]*")
_SPACE_BEFORE_MARK = re.compile(r"[ \t]+([,.;:!?)])(?=\s|$)")
_SPACES = re.compile(r"[ \t\u00a0]{2,}|\u00a0")
_REMAINING_MARKUP = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||</?ref\b[^<>]*>?", re.IGNORECASE)
_NAMED_ARGUMENT = re.compile(r"\s*[\w -]+=")
_LANGUAGE_LINK = re.compile(r"^(?:[a-z]{2,3}|simple|[a-z]{2,3}-[a-z-]+):", re.ASCII)
# Sections at the end of an English article that hold nothing but links.
_APPENDICES = {
    "references", "external links", "see also", "notes", "further reading", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "references and notes",
}  # fmt: skip


# Verbatim text is held aside: a placeholder of these private characters and a number stands in its place.
_PLACEHOLDER_START = "\ue000"
_PLACEHOLDER_END = "\ue001"
_PLACEHOLDER = re.compile(f"{_PLACEHOLDER_START}(\\d+){_PLACEHOLDER_END}")

MAX_BRACKET_DEPTH = 100  # of brackets inside brackets; those further in are removed
_CLOSED_BY = {"{{": "}}", "[[": "]]", "{|": "|}"}
_OPENED_BY = {closer: opener for opener, closer in _CLOSED_BY.items()}


@dataclass
class _OpenBracket:
    """A bracket that is not closed yet, and the text since then."""

    opener: str
    parts: list[str] = field(default_factory=list)

    @property
    def content(self) -> str:
        return "".join(self.parts)


def extract_prose(markup: str, dropped_links: Collection[str] = FILES_AND_CATEGORIES) -> str:
    """Convert a page's markup to its prose: paragraphs, headings and list items, each on its line.

    `dropped_links`: lower-case names of the namespaces of files and categories in the wiki's own language.
    """
    held: list[str] = []

    def hold_verbatim(match: re.Match) -> str:
        held.append(_convert_verbatim(match[1].lower(), match[2]))
        return f"{_PLACEHOLDER_START}{len(held) - 1}{_PLACEHOLDER_END}"

    text = markup.replace(_PLACEHOLDER_START, "").replace(_PLACEHOLDER_END, "")
    text = _COMMENT.sub("", text)
    text = _VERBATIM.sub(hold_verbatim, text)
    text = _remove_dropped_tags(text)
    text = _replace_brackets(text, dropped_links)

    text = _WEB_LINK.sub(r"\1", text)
    text = _POWER.sub(r"^\1", text)
    text = _BREAK.sub("\n", text)
    text = _TAG.sub("", text)
    text = _QUOTES.sub("", text)
    text = _MAGIC_WORD.sub("", text)

    # Tags may be written with entities, and entities with entities.
    text = _TAG.sub("", html.unescape(text))
    text = _REMAINING_MARKUP.sub("", html.unescape(text))

    text = _PLACEHOLDER.sub(lambda match: held[int(match[1])], text)
    return _clean_lines(text)


def _convert_verbatim(tag: str, content: str) -> str:
    """Return what remains of a tag whose content is not markup. Double braces in LaTeX are set apart: `{ {`."""
    content = html.unescape(content)
    if tag != "math":
        return content
    latex = " ".join(content.split()).replace("{{", "{ {").replace("}}", "} }")
    return f"${latex}$" if latex else ""


def _remove_dropped_tags(text: str) -> str:
    text = _EMPTY_DROPPED_TAG.sub("", text)
    while True:  # a reference may stand inside a gallery, and a gallery inside a reference
        text, count = _DROPPED_ELEMENT.subn("", text)
        if not count:
            return text


def _replace_brackets(text: str, dropped_links: Collection[str]) -> str:
    """Replace each `{{...}}`, `{|...|}` and `[[...]]` by what remains of it."""
    stack = [_OpenBracket("")]
    position = 0
    for match in _BRACKETS.finditer(text):
        stack[-1].parts.append(text[position : match.start()])
        position = match.end()
        token = match[0].strip(" \t:*#;")
        if token in _OPENED_BY:
            _close_bracket(stack, _OPENED_BY[token], dropped_links)
        elif len(stack) < MAX_BRACKET_DEPTH:
            stack.append(_OpenBracket(token))

    stack[-1].parts.append(text[position:])
    while len(stack) > 1:
        _close_unclosed(stack)
    return stack[0].content


def _close_bracket(stack: list[_OpenBracket], opener: str, dropped_links: Collection[str]) -> None:
    """Close the innermost open bracket of this kind, and with it those inside it that nobody closed."""
    depth = len(stack) - 1
    while depth and stack[depth].opener != opener:
        if stack[depth].opener == "{|":  # no link or template reaches out of a table
            return
        depth -= 1
    if not depth:
        return

    while len(stack) - 1 > depth:
        _close_unclosed(stack)
    content = stack.pop().content
    if opener == "{{":
        replacement = _replace_template(content)
    elif opener == "[[":
        replacement = _replace_link(content, dropped_links)
    else:
        replacement = ""
    stack[-1].parts.append(replacement)


def _close_unclosed(stack: list[_OpenBracket]) -> None:
    """Close the innermost bracket, which nobody closed: keep all but a template's paragraph or a table's rows."""
    bracket = stack.pop()
    if bracket.opener == "[[":
        kept = bracket.content
    elif bracket.opener == "{{":
        kept = bracket.content.partition("\n\n")[2]
    else:
        lines = bracket.content.split("\n")[1:]
        kept = "\n".join(line for line in lines if not line.lstrip().startswith(("|", "!")))
    stack[-1].parts.append(kept)


def _replace_link(content: str, dropped_links: Collection[str]) -> str:
    target, bar, label = content.partition("|")
    target = target.strip()
    namespace = target.partition(":")[0].strip().lower().replace("_", " ")
    if ":" in target and namespace in dropped_links:
        return ""
    if bar:
        return label.rpartition("|")[2]
    if _LANGUAGE_LINK.match(target):
        return ""
    return target.lstrip(":").lstrip("#").replace("_", " ")


def _replace_template(content: str) -> str:
    """Return the words a template leaves in the sentence; mostly none."""
    name, *arguments = content.split("|")
    name = name.strip().lower()
    select_words = _WORDS_OF_TEMPLATES.get(name.replace("_", " "))
    if select_words is None and name.startswith("lang-"):
        select_words = _first_argument
    if select_words is None:
        return ""
    positional = [argument.strip() for argument in arguments if not _NAMED_ARGUMENT.match(argument)]
    return select_words(positional)


def _first_argument(arguments: list[str]) -> str:
    return arguments[0] if arguments else ""


def _second_argument(arguments: list[str]) -> str:
    return arguments[1] if len(arguments) > 1 else ""


def _format_measure(arguments: list[str]) -> str:
    """Format a measure: `5|km|mi` is 5 km; `5|to|8|km` is 5 to 8 km."""
    ranges = {"-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "x": " x ", "by": " by "}
    if len(arguments) > 3 and arguments[1] in ranges:
        low, word, high, unit = arguments[:4]
        return f"{low}{ranges[word]}{high} {unit}"
    return " ".join(arguments[:2])


def _format_date(arguments: list[str]) -> str:
    """Format year, month and day in the order they are read: 30 June 2015."""
    month = [calendar.month_name[int(text)] if text in _MONTH_NUMBERS else text for text in arguments[1:2]]
    return " ".join([*arguments[2:3], *month, *arguments[:1]])


def _format_as_of(arguments: list[str]) -> str:
    return f"As of {_format_date(arguments)}"


def _format_circa(arguments: list[str]) -> str:
    return f"c. {_first_argument(arguments)}".rstrip()


def _always(word: str) -> Callable[[list[str]], str]:
    """Make a function that returns this word whatever the arguments."""
    return lambda arguments: word


_MONTH_NUMBERS = {f"{number:{width}}" for number in range(1, 13) for width in ("", "02")}
_TEMPLATES_OF_FIRST_ARGUMENT = (
    "nowrap", "nobr", "small", "smaller", "big", "lang-en", "abbr", "quote", "blockquote", "cquote", "centered", "em",
    "strong", "not a typo", "as written", "transl", "keypress", "code", "mvar", "math", "smallcaps", "visible anchor",
)  # fmt: skip
# By the name of a template, what its positional arguments become.
_WORDS_OF_TEMPLATES: dict[str, Callable[[list[str]], str]] = {
    **dict.fromkeys(_TEMPLATES_OF_FIRST_ARGUMENT, _first_argument),
    **dict.fromkeys(("lang", "tooltip", "color", "font color", "langnf"), _second_argument),
    **dict.fromkeys(("convert", "cvt"), _format_measure),
    **dict.fromkeys(("val", "formatnum", "nts", "gaps"), " ".join),
    **dict.fromkeys(("c.", "circa"), _format_circa),
    **dict.fromkeys(("frac", "sfrac"), "/".join),
    "as of": _format_as_of,
    "!": _always("|"),
    "=": _always("="),
    **dict.fromkeys(("snd", "spaced ndash", "spnd", "ndash"), _always(" – ")),
    **dict.fromkeys(("mdash", "em dash"), _always("—")),
    **dict.fromkeys(("nbsp", "space", "spaces"), _always(" ")),
    **dict.fromkeys(("'", "'s"), _always("'")),
}


@dataclass
class _Line:
    """A line of the prose."""

    text: str
    heading_level: int = 0  # 0: not a heading


def _clean_lines(text: str) -> str:
    """Mark list items, bare the headings, and remove headings with nothing below them and appendices."""
    kept: list[_Line] = []
    appendix_level = 0  # of the heading of the appendix whose lines are removed
    for line in text.split("\n"):
        heading = _HEADING.match(line.strip())
        if not heading:
            if not appendix_level:
                _keep_line(kept, line)
            continue

        level = len(heading[1])
        title = _close_gaps(heading[2])
        if appendix_level and level > appendix_level:
            continue
        appendix_level = level if title.lower() in _APPENDICES else 0
        while kept and kept[-1].heading_level >= level:
            kept.pop()
        if title and not appendix_level:
            kept += [_Line(""), _Line(title, level)]

    while kept and (kept[-1].heading_level or not kept[-1].text):
        kept.pop()
    joined = "\n".join(line.text for line in kept)
    return re.sub(r"\n{3,}", "\n\n", joined).strip()


def _keep_line(kept: list[_Line], line: str) -> None:
    """Add a line of text, unless it holds only punctuation, or is blank and follows a heading."""
    marks = _LIST.match(line)
    words = _close_gaps(line[marks.end() :] if marks else line.rstrip())
    has_words = bool(words.strip(" -–—,.;:|*#()[]{}!/\\"))
    if not has_words:
        follows_heading = bool(kept) and kept[-1].heading_level > 0
        if not line.strip() and not follows_heading:
            kept.append(_Line(""))
        return

    if marks and marks[1].strip(":;"):  # an item of a list
        indent = "  " * (len(marks[1]) - 1)
        words = f"{indent}- {words}"
    kept.append(_Line(words))


def _close_gaps(line: str) -> str:
    """Close the gaps that removed markup leaves: `( , )`, doubled spaces, a space before a full stop."""
    line = _SPACES.sub(" ", line)
    line = _EMPTY_PARENTHESES.sub("", line)
    line = _OPENED_WITH_COMMA.sub(r"\1", line)
    return _SPACE_BEFORE_MARK.sub(r"\1", line).strip()
