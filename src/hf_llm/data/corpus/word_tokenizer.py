"""A text's words and sentences, as spaCy's English tokenizer tells them apart, at the speed of a dictionary.

The thresholds of Gopher and FineWeb are stated for words of that tokenizer. It splits at white space and then each
chunk by itself: a table of exceptions, then punctuation off both ends, then cuts inside. A chunk's words are the same
wherever it stands, so they are worked out once and looked up ever after.

In Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan nothing marks a word; `has_words` tells such a text, and
rules that count words do not judge it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain

import regex

CACHED_CHUNKS = 1 << 17  # about 30 MB
LONGEST_CHUNK = 1000  # characters; what is longer is no word, and is not searched for any

_PUNCTUATION = r""",:;!?()\[\]{}<>_#*&'"`´¿¡؟…。？！，、；：～·।،۔؛٪‘’‚“”„«»「」『』（）〔〕【】《》〈〉⟦⟧"""
_CURRENCY = r"[$£€¥฿₽﷼₠-₿]"
_LOWER = r"\p{Ll}\p{Lo}\p{Lm}"  # a letter of a script without capitals counts as small
_UNITS = (
    "km²|km³|km|m²|m³|m|dm²|dm³|dm|cm²|cm³|cm|mm²|mm³|mm|ha|µm|nm|yd|in|ft|kg|g|mg|µg|t|lb|oz|m/s|km/h|kmh|mph|hPa|Pa|"
    "mbar|mb|MB|kb|KB|gb|GB|tb|TB|T|G|M|K|%"
)
_PREFIX = regex.compile(
    rf"…+|\.\.+|\+(?![0-9])|(?:US|C|A)\$|{_CURRENCY}|[§%=—–\p{{So}}{_PUNCTUATION}]",
)
_SUFFIX = regex.compile(
    rf"(?:\.\.+|['’][sS]|[—–\p{{So}}{_PUNCTUATION}]|(?<=[0-9])(?:\+|(?:US|C|A)\$|{_CURRENCY}|{_UNITS})"
    rf"|(?<=[0-9{_LOWER}%²\-+{_PUNCTUATION}]|\p{{Lu}}\p{{Lu}})\.)$",
)
_INFIX = regex.compile(
    rf"\.\.+|…|\p{{So}}|(?<=[0-9])[+\-*^](?=[0-9-])|(?<=[{_LOWER}'\"`‘’“”»«])\.(?=[\p{{Lu}}'\"`‘’“”»«])"
    r"|(?<=\p{L}),(?=\p{L})|(?<=[\p{L}0-9])(?:-{1,3}|–|——?|~)(?=\p{L})|(?<=[\p{L}0-9])[:<>=/](?=\p{L})"
)
_ADDRESS = regex.compile(
    r"(?:[\w+.-]{2,}://)?(?:\S+@)?"
    rf"(?:(?:[A-Za-z0-9\u00a1-\uffff](?:[\w\u00a1-\uffff-]*[A-Za-z0-9\u00a1-\uffff])?\.)+[{_LOWER}]{{2,63}}"
    r"|[1-9]\d{0,2}(?:\.\d{1,3}){3})(?::\d{2,5})?(?:[/?#]\S*)?"
)
_ENDS_SENTENCE = regex.compile(r"\p{STerm}")
_IS_PUNCTUATION = regex.compile(r"\p{P}+")
# Thai, Lao, Tibetan, Burmese; Khmer; kana; Han
_UNSPACED = re.compile("[\u0e00-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff]")

_ABBREVIATIONS = """
a. b. c. d. e. f. g. h. i. j. k. l. m. n. o. p. q. r. s. t. u. v. w. x. y. z. ä. ö. ü.
a.m. p.m. e.g. E.g. E.G. i.e. I.e. I.E. vs. v.s. Adm. Bros. co. Co. Corp. D.C. Dr. Gen. Gov. Inc. Jr. Ltd. Md. Messrs.
Mo. Mont. Mr. Mrs. Ms. Mt. Ph.D. Prof. Rep. Rev. Sen. St. Ak. Ala. Apr. Ariz. Ark. Aug. Calif. Colo. Conn. Dec. Del.
Feb. Fla. Ga. Ia. Id. Ill. Ind. Jan. Jul. Jun. Kan. Kans. Ky. La. Mar. Mass. Mich. Minn. Miss. N.C. N.D. N.H. N.J. N.M.
N.Y. Neb. Nebr. Nev. Nov. Oct. Okla. Ore. Pa. S.C. Sep. Sept. Tenn. Va. Wash. Wis. and/or w/o C++ o'clock O'clock
ma'am Ma'am ' '' 's 'S 'd 'll 're 'em 'nuff 'bout 'cause 'Cause 'cos 'Cos 'cuz 'Cuz 'coz 'Coz
doin' goin' nothin' nuthin' ol' somethin' lovin' havin' Doin' Goin' Nothin' Nuthin' Ol' Somethin' Lovin' Havin'
:) :-) :( :-( ;) ;-) :D :-D ;D =) =D :P :-P :p :-p :/ :-/ :| :O :o xD XD <3 </3 ^_^ -_- o_O O_o :1 :3 :0 :'( :')
"""
_AFTER_SUBJECT = {
    "i": "m ll ll've d d've ve", "you": "ll ll've d d've ve re", "we": "ll ll've d d've ve re",
    "they": "ll ll've d d've ve re", "he": "ll ll've d d've s", "she": "ll ll've d d've s", "it": "ll ll've d d've s",
    **dict.fromkeys(("who", "what", "when", "where", "why", "how", "there"), "s ll ll've d d've ve re"),
    **dict.fromkeys(("that", "this"), "s ll ll've d d've"),
    **dict.fromkeys(("these", "those"), "ll ll've d d've ve re"),
}  # fmt: skip
_BEFORE_NOT = """
ca could do does did had may might must need ought sha should wo would ai are is was were have has dare
"""
_SPLIT_WITHIN = "can|not Can|not gon|na Gon|na got|ta Got|ta let|'s Let|'s c'm|on C'm|on y'|all y|all"
_WORDS_THEMSELVES = "ill its hell shell shed were well Ill Its Hell Shell Shed Were Well"

# Rules that follow each other ask for the same text.
_last: tuple[str, list[str]] = ("", [])
_last_counts: tuple[list[str], Counter] = ([], Counter())


def words(text: str) -> list[str]:
    """The words and punctuation marks of a text, in order. The list is shared: do not change it."""
    global _last
    if _last[0] is not text:
        _last = (text, list(chain.from_iterable(map(_chunks().__getitem__, text.split()))))
    return _last[1]


def word_counts(text: str) -> Counter[str]:
    """How often each word occurs, capitals as small letters. The counter is shared: do not change it."""
    global _last_counts
    found = words(text)
    if _last_counts[0] is not found:
        counts = Counter()
        for word, count in Counter(found).items():
            counts[word.lower()] += count
        _last_counts = (found, counts)
    return _last_counts[1]


def sentences(line: str, at_most: int) -> int:
    """How many sentences a line has, counted up to `at_most`.

    A sentence ends with a mark that can end one, and the punctuation behind it (spaCy's `Sentencizer`).
    """
    count, ended, some = 0, False, False
    for word in chain.from_iterable(map(_chunks().__getitem__, line.split())):
        some = True
        if len(word) == 1 and _ENDS_SENTENCE.match(word):
            ended = True
        elif ended and not _IS_PUNCTUATION.fullmatch(word):
            count, ended = count + 1, False
            if count >= at_most:
                return at_most
    return count + some


def has_words(text: str) -> bool:
    """Whether the text is in a script that parts its words: less than a third of it is in one that does not."""
    if text.isascii() or not _UNSPACED.search(text):
        return True
    return 3 * len(_UNSPACED.findall(text)) < len(text)


@cache
def _chunks() -> "_Chunks":
    return _Chunks()


class _Chunks(dict[str, tuple[str, ...]]):
    """Chunk of text without white space to its words, worked out where it is met first."""

    def __init__(self) -> None:
        super().__init__()
        self.exceptions = _exceptions()

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        if chunk.isalpha() and chunk not in self.exceptions:
            found = (chunk,)
        elif len(chunk) > LONGEST_CHUNK:
            return (chunk,)
        else:
            found = tuple(_words_of(chunk, self.exceptions))
        if len(self) >= CACHED_CHUNKS:
            self.clear()
        self[chunk] = found
        return found


def _words_of(chunk: str, exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """The words of one chunk: known ones whole, else what is left when both ends are taken off, cut inside."""
    before, after = [], []
    while chunk and chunk not in exceptions:
        prefix = _PREFIX.match(chunk)
        start = prefix.end() if prefix else 0
        suffix = _SUFFIX.search(chunk[start:])
        end = start + suffix.start() if suffix else len(chunk)
        if start and chunk[start:] in exceptions:
            end = len(chunk)
        elif chunk[:end] in exceptions:
            start = 0
        if start == 0 and end == len(chunk):
            break
        if start:
            before.append(chunk[:start])
        if end < len(chunk):
            after.append(chunk[end:])
        chunk = chunk[start:end]
    if not chunk:
        inside = ()
    elif chunk in exceptions:
        inside = exceptions[chunk]
    else:
        inside = (chunk,) if chunk.isalnum() or _ADDRESS.fullmatch(chunk) else _cut(chunk)
    return [*before, *inside, *reversed(after)]


def _cut(chunk: str) -> Iterator[str]:
    start = 0
    for match in _INFIX.finditer(chunk):
        if match.start() == 0:
            continue
        if match.start() > start:
            yield chunk[start : match.start()]
        yield match[0]
        start = match.end()
    if start < len(chunk):
        yield chunk[start:]


def _exceptions() -> dict[str, tuple[str, ...]]:
    """Chunks whose words no rule of punctuation gives: abbreviations, contractions, smileys."""
    table = {word: (word,) for word in _ABBREVIATIONS.split()}
    themselves = _WORDS_THEMSELVES.split()
    for hour in range(1, 13):
        table |= {f"{hour}{half}": (str(hour), half) for half in ("am", "pm", "a.m.", "p.m.")}
    table |= {word.replace("|", ""): tuple(word.split("|")) for word in _SPLIT_WITHIN.split()}
    pairs = [[subject, *_parts(tail)] for subject, tails in _AFTER_SUBJECT.items() for tail in tails.split()]
    pairs += [[verb, "n't", *more] for verb in _BEFORE_NOT.split() for more in ([], ["'ve"])]
    pairs += [[verb, "'ve"] for verb in ("could", "might", "must", "should", "would", "not")]
    for first, *rest in pairs:
        for start in (first, first.capitalize()):
            parts = (start, *rest)
            table["".join(parts)] = parts
            bare = tuple(part.replace("'", "") for part in parts)
            if "".join(bare) not in themselves:
                table.setdefault("".join(bare), bare)
    curly = {key: parts for key, parts in table.items() if "'" in key}
    return table | {key.replace("'", "’"): tuple(p.replace("'", "’") for p in parts) for key, parts in curly.items()}


def _parts(tail: str) -> list[str]:
    """`ll've` as the two parts of a contraction it stands for."""
    return [f"'{part}" for part in tail.split("'")]
