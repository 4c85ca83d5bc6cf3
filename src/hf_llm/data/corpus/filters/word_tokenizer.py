"""Split a text into words and sentences as spaCy's English tokenizer does, but faster, by a cache of chunks.

The limits of Gopher and FineWeb were chosen for the words of that tokenizer. It splits a text at white space into
chunks, and each chunk into words: by a table of exceptions, else it takes punctuation off both ends and then splits at
marks inside. The words of a chunk do not depend on the text around it, so they are computed once and then looked up.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan do not separate words; `has_words` is false for such a text,
and filters that count words do not check it.
"""

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import chain

import regex

MAX_CACHED_CHUNKS = 1 << 17  # about 30 MB
MAX_CHUNK_CHARS = 1000  # a longer chunk counts as one word, without being split

_PUNCTUATION = r""",:;!?()\[\]{}<>_#*&'"`´¿¡؟…。？！，、；：～·।،۔؛٪‘’‚“”„«»「」『』（）〔〕【】《》〈〉⟦⟧"""
_CURRENCY = r"[$£€¥฿₽﷼₠-₿]"
_LOWER = r"\p{Ll}\p{Lo}\p{Lm}"  # a letter of a script without capitals counts as lower case
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
# Contractions: what follows a subject, what comes before "n't", and others, cut at the bar.
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
# Contractions that are other words without their apostrophe.
_OTHER_WORDS = "ill its hell shell shed were well Ill Its Hell Shell Shed Were Well"

# Caches, since filters are run one after the other on the same text: the last text and its words, the last words and
# their counts.
_last_words: tuple[str, list[str]] = ("", [])
_last_counts: tuple[list[str], Counter] = ([], Counter())


def split_words(text: str) -> list[str]:
    """Return the words and punctuation marks of a text, in order. The list is shared: do not change it."""
    global _last_words
    last_text, words = _last_words
    if last_text is not text:
        words = list(_words_of_chunks(text))
        _last_words = (text, words)
    return words


def count_words(text: str) -> Counter[str]:
    """Count how often each word occurs, in lower case. The counter is shared: do not change it."""
    global _last_counts
    words = split_words(text)
    counted, counts = _last_counts
    if counted is not words:
        counts = Counter()
        for word, count in Counter(words).items():
            counts[word.lower()] += count
        _last_counts = (words, counts)
    return counts


def count_sentences(line: str, at_most: int) -> int:
    """Count the sentences of a line, up to `at_most`.

    A sentence ends with a mark that can end one, and the punctuation behind it (spaCy's `Sentencizer`).
    """
    count = 0
    is_ended = False
    is_empty = True
    for word in _words_of_chunks(line):
        is_empty = False
        if len(word) == 1 and _ENDS_SENTENCE.match(word):
            is_ended = True
        elif is_ended and not _IS_PUNCTUATION.fullmatch(word):
            # The first word of the next sentence.
            count += 1
            is_ended = False
            if count >= at_most:
                return at_most

    if is_empty:
        return 0
    return count + 1


def has_words(text: str) -> bool:
    """Whether the text is in a script that separates words: less than a third of it is in one that does not."""
    if text.isascii() or not _UNSPACED.search(text):
        return True
    return 3 * len(_UNSPACED.findall(text)) < len(text)


def _words_of_chunks(text: str) -> Iterator[str]:
    words_of_chunk = _chunk_words()
    return chain.from_iterable(map(words_of_chunk.__getitem__, text.split()))


@cache
def _chunk_words() -> "_ChunkWords":
    return _ChunkWords()


class _ChunkWords(dict[str, tuple[str, ...]]):
    """Maps a chunk, text without white space, to its words, which are computed at the first look-up."""

    def __init__(self) -> None:
        super().__init__()
        self.exceptions = _build_exceptions()

    def __missing__(self, chunk: str) -> tuple[str, ...]:
        if chunk.isalpha() and chunk not in self.exceptions:
            words = (chunk,)
        elif len(chunk) > MAX_CHUNK_CHARS:
            return (chunk,)  # not cached
        else:
            words = tuple(_split_chunk(chunk, self.exceptions))

        if len(self) >= MAX_CACHED_CHUNKS:
            self.clear()
        self[chunk] = words
        return words


def _split_chunk(chunk: str, exceptions: dict[str, tuple[str, ...]]) -> list[str]:
    """Split one chunk: take punctuation off both ends until it is an exception, then split the middle at marks."""
    before = []
    after = []
    while chunk and chunk not in exceptions:
        prefix = _PREFIX.match(chunk)
        start = prefix.end() if prefix else 0
        suffix = _SUFFIX.search(chunk[start:])
        end = start + suffix.start() if suffix else len(chunk)

        # An exception keeps its own punctuation: only the other end is taken off.
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
    elif chunk.isalnum() or _ADDRESS.fullmatch(chunk):
        inside = (chunk,)
    else:
        inside = _split_inside(chunk)
    return [*before, *inside, *reversed(after)]


def _split_inside(chunk: str) -> Iterator[str]:
    """Split a chunk at the marks inside it, which are words themselves."""
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


def _build_exceptions() -> dict[str, tuple[str, ...]]:
    """Build the table of chunks that must not be split at punctuation: abbreviations, contractions, smileys."""
    table: dict[str, tuple[str, ...]] = {word: (word,) for word in _ABBREVIATIONS.split()}
    for hour in range(1, 13):
        for half in ("am", "pm", "a.m.", "p.m."):
            table[f"{hour}{half}"] = (str(hour), half)
    for entry in _SPLIT_WITHIN.split():
        table[entry.replace("|", "")] = tuple(entry.split("|"))

    # Each contraction as it stands at the start of a sentence and elsewhere, and without its apostrophes.
    other_words = _OTHER_WORDS.split()
    for first, *others in _list_contractions():
        for start in (first, first.capitalize()):
            parts = (start, *others)
            table["".join(parts)] = parts
            bare_parts = tuple(part.replace("'", "") for part in parts)
            bare = "".join(bare_parts)
            if bare not in other_words:
                table.setdefault(bare, bare_parts)

    # All of these again with the typographic apostrophe.
    for chunk, parts in list(table.items()):
        if "'" in chunk:
            table[chunk.replace("'", "’")] = tuple(part.replace("'", "’") for part in parts)
    return table


def _list_contractions() -> list[list[str]]:
    """List the parts of every contraction: "I" and "'ve", "could", "n't" and "'ve" ..."""
    contractions = []
    for subject, tails in _AFTER_SUBJECT.items():
        for tail in tails.split():
            contractions.append([subject, *(f"'{part}" for part in tail.split("'"))])
    for verb in _BEFORE_NOT.split():
        contractions.append([verb, "n't"])
        contractions.append([verb, "n't", "'ve"])
    for verb in ("could", "might", "must", "should", "would", "not"):
        contractions.append([verb, "'ve"])
    return contractions
