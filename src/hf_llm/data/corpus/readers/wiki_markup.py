"""Wiki markup to prose: templates, tables, references, files, categories and tags out; links keep their words.

One pass over the brackets, innermost first, then line by line. No template is expanded: this needs the whole wiki. Some
whose words belong to the sentence (`{{convert|5|km}}`, `{{lang|fr|mot}}`) leave those words.
Markup: https://www.mediawiki.org/wiki/Help:Formatting, https://en.wikipedia.org/wiki/Help:Wikitext
"""

import calendar
import html
import re
from collections.abc import Callable, Collection

# Namespaces whose links are no words of the text; every wiki knows the English names beside its own.
FILES_AND_CATEGORIES = frozenset({"file", "image", "media", "category"})

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
# Left out with all they hold. An opening tag that is never closed is left out alone.
_DROPPED = (
    "ref|references|gallery|timeline|imagemap|score|graph|hiero|inputbox|mapframe|maplink|templatestyles|categorytree|"
    "dynamicpagelist|section|includeonly|templatedata|indicator|charinsert|ce|chem"
)
_DROPPED_EMPTY = re.compile(rf"<(?:{_DROPPED})\b[^<>]*/>", re.IGNORECASE)
_DROPPED_FULL = re.compile(rf"<({_DROPPED})\b[^<>]*>(?:(?!<\1\b).)*?</\1\s*>", re.IGNORECASE | re.DOTALL)
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
_SWITCH = re.compile(r"__[A-Z]{3,}__")
_HEADING = re.compile(r"^(={1,6})[ \t]*(.*?)[ \t]*\1[ \t]*$")
_LIST = re.compile(r"^([*#:;]+)[ \t]*")
_EMPTY_PARENTHESES = re.compile(r"[ \t]*[(（][\s,;:–-]*[)）]")
_OPENED_WITH_COMMA = re.compile(r"([(（])[ \t]*[,;:][ \t,;:]*")
_SPACE_BEFORE_MARK = re.compile(r"[ \t]+([,.;:!?)])(?=\s|$)")
_SPACES = re.compile(r"[ \t\u00a0]{2,}|\u00a0")
_MARKUP_LEFT = re.compile(r"\{\{|\}\}|\[\[|\]\]|\{\||</?ref\b[^<>]*>?", re.IGNORECASE)
_LANGUAGE_LINK = re.compile(r"^(?:[a-z]{2,3}|simple|[a-z]{2,3}-[a-z-]+):", re.ASCII)
# Sections at the end of an English article that hold nothing but links.
_APPENDICES = {
    "references", "external links", "see also", "notes", "further reading", "bibliography", "sources", "footnotes",
    "citations", "notes and references", "references and notes",
}  # fmt: skip


def prose(markup: str, dropped_links: Collection[str] = FILES_AND_CATEGORIES) -> str:
    """The prose of a page's markup: paragraphs, headings and list items, each on its line.

    `dropped_links`: lower-case names of the namespaces of files and categories in the wiki's own language.
    """
    held: list[str] = []

    def hold(match: re.Match) -> str:
        held.append(_verbatim(match[1].lower(), match[2]))
        return f"\ue000{len(held) - 1}\ue001"

    text = _COMMENT.sub("", markup.replace("\ue000", "").replace("\ue001", ""))
    text = _VERBATIM.sub(hold, text)
    text = _without_dropped(text)
    text = _resolved(text, dropped_links)
    text = _WEB_LINK.sub(r"\1", text)
    text = _TAG.sub("", _BREAK.sub("\n", _POWER.sub(r"^\1", text)))
    text = _SWITCH.sub("", _QUOTES.sub("", text))
    text = _MARKUP_LEFT.sub("", html.unescape(_TAG.sub("", html.unescape(text))))
    text = re.sub("\ue000(\\d+)\ue001", lambda match: held[int(match[1])], text)
    return _lines(text)


def _verbatim(tag: str, content: str) -> str:
    """What stays of a tag whose content is no markup. LaTeX's double braces are set apart: `{ {`."""
    content = html.unescape(content)
    if tag == "math":
        latex = " ".join(content.split()).replace("{{", "{ {").replace("}}", "} }")
        return f"${latex}$" if latex else ""
    return content


def _without_dropped(text: str) -> str:
    text = _DROPPED_EMPTY.sub("", text)
    while True:  # a reference may stand inside a gallery, and a gallery inside a reference
        text, count = _DROPPED_FULL.subn("", text)
        if not count:
            return text


def _resolved(text: str, dropped_links: Collection[str]) -> str:
    """The text without `{{...}}`, `{|...|}` and `[[...]]`, each replaced by what remains of it."""
    stack: list[tuple[str, list[str]]] = [("", [])]
    position = 0
    for match in _BRACKETS.finditer(text):
        stack[-1][1].append(text[position : match.start()])
        position = match.end()
        token = match[0].strip(" \t:*#;")
        if token in _CLOSED_BY:
            if len(stack) < _DEPTH:
                stack.append((token, []))
        else:
            _close(stack, _OPENED_BY[token], dropped_links)
    stack[-1][1].append(text[position:])
    while len(stack) > 1:
        opener, parts = stack.pop()
        stack[-1][1].append(_unclosed(opener, "".join(parts)))
    return "".join(stack[0][1])


_DEPTH = 100  # of brackets inside brackets; those further in are left out
_CLOSED_BY = {"{{": "}}", "[[": "]]", "{|": "|}"}
_OPENED_BY = {closer: opener for opener, closer in _CLOSED_BY.items()}


def _close(stack: list[tuple[str, list[str]]], opener: str, dropped_links: Collection[str]) -> None:
    """End the innermost open bracket of this kind, and with it those inside it that nobody closed."""
    depth = len(stack) - 1
    while depth and stack[depth][0] != opener:
        if stack[depth][0] == "{|":  # no link or template reaches out of a table
            return
        depth -= 1
    if not depth:
        return
    while len(stack) - 1 > depth:
        inner, parts = stack.pop()
        stack[-1][1].append(_unclosed(inner, "".join(parts)))
    content = "".join(stack.pop()[1])
    if opener == "{{":
        replaced = _template(content)
    else:
        replaced = _link(content, dropped_links) if opener == "[[" else ""
    stack[-1][1].append(replaced)


def _unclosed(opener: str, content: str) -> str:
    """What is kept after a bracket that nobody closes: all but a template's paragraph or a table's rows."""
    if opener == "[[":
        return content
    if opener == "{{":
        return content.partition("\n\n")[2]
    return "\n".join(line for line in content.split("\n")[1:] if not line.lstrip().startswith(("|", "!")))


def _link(content: str, dropped_links: Collection[str]) -> str:
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


def _template(content: str) -> str:
    """The words a template leaves in the sentence; mostly none."""
    name, *arguments = content.split("|")
    words = _WORDS.get(name.strip().lower().replace("_", " "))
    if words is None:
        language = name.strip().lower()
        words = _first if language.startswith("lang-") else None
    plain = [argument.strip() for argument in arguments if not re.match(r"\s*[\w -]+=", argument)]
    return words(plain) if words else ""


def _first(arguments: list[str]) -> str:
    return arguments[0] if arguments else ""


def _second(arguments: list[str]) -> str:
    return arguments[1] if len(arguments) > 1 else ""


def _measure(arguments: list[str]) -> str:
    """`5|km|mi` is 5 km; `5|to|8|km` is 5 to 8 km."""
    ranges = {"-": "–", "–": "–", "to": " to ", "and": " and ", "or": " or ", "x": " x ", "by": " by "}
    if len(arguments) > 3 and arguments[1] in ranges:
        return f"{arguments[0]}{ranges[arguments[1]]}{arguments[2]} {arguments[3]}"
    return " ".join(arguments[:2])


def _date(arguments: list[str]) -> str:
    """Year, month and day in the order they are read: 30 June 2015."""
    month = [calendar.month_name[int(text)] if text in _MONTHS else text for text in arguments[1:2]]
    return " ".join([*arguments[2:3], *month, *arguments[:1]])


_MONTHS = {f"{number:{width}}" for number in range(1, 13) for width in ("", "02")}
_OF_FIRST = (
    "nowrap", "nobr", "small", "smaller", "big", "lang-en", "abbr", "quote", "blockquote", "cquote", "centered", "em",
    "strong", "not a typo", "as written", "transl", "keypress", "code", "mvar", "math", "smallcaps", "visible anchor",
)  # fmt: skip
_WORDS: dict[str, Callable[[list[str]], str]] = {
    **dict.fromkeys(_OF_FIRST, _first),
    **dict.fromkeys(("lang", "tooltip", "color", "font color", "langnf"), _second),
    **dict.fromkeys(("convert", "cvt"), _measure),
    **dict.fromkeys(("val", "formatnum", "nts", "gaps"), " ".join),
    **dict.fromkeys(("c.", "circa"), lambda arguments: f"c. {_first(arguments)}".rstrip()),
    **dict.fromkeys(("frac", "sfrac"), "/".join),
    "as of": lambda arguments: f"As of {_date(arguments)}",
    "!": lambda arguments: "|",
    "=": lambda arguments: "=",
    **dict.fromkeys(("snd", "spaced ndash", "spnd", "ndash"), lambda arguments: " – "),
    **dict.fromkeys(("mdash", "em dash"), lambda arguments: "—"),
    **dict.fromkeys(("nbsp", "space", "spaces"), lambda arguments: " "),
    **dict.fromkeys(("'", "'s"), lambda arguments: "'"),
}


def _lines(text: str) -> str:
    """The text line by line: list items marked, headings bare, those with nothing below them left out."""
    kept: list[tuple[int, str]] = []  # the level of a heading (0: a line of text), and the line
    skipped = 0  # level of the appendix whose lines are left out
    for line in text.split("\n"):
        heading = _HEADING.match(line.strip())
        if heading:
            level, title = len(heading[1]), _smooth(heading[2])
            if skipped and level > skipped:
                continue
            skipped = level if title.lower() in _APPENDICES else 0
            while kept and kept[-1][0] >= level:
                kept.pop()
            if title and not skipped:
                kept += [(0, ""), (level, title)]
        elif not skipped:
            _keep_line(kept, line)
    while kept and (kept[-1][0] or not kept[-1][1]):
        kept.pop()
    return re.sub(r"\n{3,}", "\n\n", "\n".join(line for _, line in kept)).strip()


def _keep_line(kept: list[tuple[int, str]], line: str) -> None:
    marks = _LIST.match(line)
    words = _smooth(line[marks.end() :] if marks else line.rstrip())
    if not words.strip(" -–—,.;:|*#()[]{}!/\\"):
        if not (kept and kept[-1][0]) and not line.strip():  # a blank line after a heading says nothing
            kept.append((0, ""))
    elif marks and marks[1].strip(":;"):
        kept.append((0, "  " * (len(marks[1]) - 1) + "- " + words))
    else:
        kept.append((0, words))


def _smooth(line: str) -> str:
    """The line without the holes that left-out markup leaves: `( , )`, doubled spaces, a space before a full stop."""
    line = _SPACES.sub(" ", line)
    line = _OPENED_WITH_COMMA.sub(r"\1", _EMPTY_PARENTHESES.sub("", line))
    return _SPACE_BEFORE_MARK.sub(r"\1", line).strip()
