"""Decode text: a file is read whole, in the one encoding that fits all of it, or it is left out whole.

Tried in this order: a byte order mark; UTF-16 and UTF-32 without one (their zero bytes tell); UTF-8; the encoding that
the file declares (`charset=`, `coding:`, Project Gutenberg's header, LaTeX's inputenc); UTF-8 into which text in
Windows-1252 was pasted; Windows-1252; what charset-normalizer takes it for. Except for the first three, the decoded
text has to look like text: in the wrong encoding, symbols and capitals stand within words (`Za¿ó³æ`, `caf‚s`).

An incomplete character at the end is a cut, as `head -c` makes it, and no reason to leave a file out.
"""

import codecs
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from hf_llm.data.files.compressed import CHUNK_BYTES, DAMAGE, InputFile, open_file

PEEK_BYTES = 4096  # of a file's start, which tell UTF-16, UTF-32 and what is not text
MIN_WIDE_BYTES = 8  # of a file without a byte order mark, to be taken for UTF-16
DECLARATION_BYTES = 10_000  # of a file's start, in which it may name its encoding
SAMPLE_BYTES = 1 << 20  # of lines that are not UTF-8, from which the encoding is told
DETECTION_BYTES = 64 << 10  # of the sample that charset-normalizer sees: it is slow
MIN_DETECTION_BYTES = 16  # beyond ASCII: it guesses where there are fewer
MAX_ODD_SHARE = 0.02  # of non-ASCII characters: symbols and capitals within words, which even good text has a few of
MAX_ACCENTED_SHARE = 0.4  # of letters, of a text in Latin ones
MAX_CONTROL_SHARE = 0.001  # of characters
MIN_LANGUAGE_BYTES = 2_000  # of a sample, from which its language, and so one of several encodings, is told
MIN_COHERENCE = 0.4  # charset-normalizer's measure of how well the frequencies of letters fit a language
DAMAGE_RATIO = 10  # so many lines of good UTF-8 for each line that is not: the file is damaged UTF-8, and nothing else

NOT_TEXT = "binary"
UNKNOWN_ENCODING = "not UTF-8"  # and in no other encoding that was recognised

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before that of UTF-16, with which it begins
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# The start of an escape sequence, by which encodings made of ASCII (ISO-2022) say which characters follow.
_ESCAPE_SEQUENCE = re.compile(rb"\x1b[$(]")
_ESCAPED_ENCODINGS = ("iso2022_jp_2", "iso2022_jp_3", "iso2022_kr")
_DECLARATION = re.compile(
    rb"(?:\bcoding\s*[:=]|\bcharset\s*=|\bencoding\s*=|Character set encoding:"
    rb"|\\usepackage\s*\[(?=[^\]]*\]\{inputenc\}))"
    rb"\s*[\"']?\s*([\w.-]+(?: Latin-1)?)",
    re.IGNORECASE,
)
# Names that Python does not know, and those that mean Windows-1252 in practice (https://encoding.spec.whatwg.org).
_DECLARED_NAMES = {
    "iso latin-1": "cp1252", "iso-8859-1": "cp1252", "iso8859-1": "cp1252", "iso_8859-1": "cp1252", "latin1": "cp1252",
    "latin-1": "cp1252", "ascii": "cp1252", "us-ascii": "cp1252", "ansinew": "cp1252", "applemac": "mac_roman",
    "windows-1252": "cp1252",
}  # fmt: skip
_CONTROL_CHARACTER = re.compile("[\0-\x08\x0e-\x19\x1c-\x1f\x7f-\x9f\ue000-\uf8ff]")  # and private ones
_NON_ASCII = re.compile(r"[^\0-\x7f]")
_NON_ASCII_LETTER = re.compile(r"(?![\0-\x7f])[^\W\d_]")
_LETTER = re.compile(r"[^\W\d_]")
# Symbols that no word holds or begins or ends with; quotation marks, dashes and the soft hyphen are not among them.
_ODD_SYMBOLS = "¢-¦¨¬¯±-³¶¸¹¼-¾×÷ƒˆ‚„†‡‰‹\u0090"
_ACCENTED = [chr(number) for number in range(0xC0, 0x180)]
_ACCENTED_CAPITALS = "".join(letter for letter in _ACCENTED if letter.isupper())
_ACCENTED_SMALL = "".join(letter for letter in _ACCENTED if letter.islower())
# A symbol within a word, a capital after a small letter (`donÕt`), an accented letter alone that is not a word.
_ODD_CHARACTER = re.compile(
    rf"(?<=[^\W\d_])[{_ODD_SYMBOLS}¡¿©®°º«»·•…\u2190-\u2bff]+(?=[^\W\d_])"
    rf"|(?<=[a-z{_ACCENTED_SMALL}])(?:[{_ODD_SYMBOLS}•]|[{_ACCENTED_CAPITALS}](?![A-Z{_ACCENTED_CAPITALS}]))"
    r"|(?<=\s)[ŠŽŒŸ](?=\s)|[а-яё][А-ЯЁ]|[α-ω][Α-Ω]"
)
# Encodings of Latin letters by the languages that they are for; those of other scripts tell themselves.
_LATIN_ENCODINGS = {
    "western": ("cp1252", "mac_roman", "cp850"),
    "central": ("cp1250", "iso8859_2", "cp852"),
    "turkish": ("cp1254",),
    "baltic": ("cp1257",),
    "vietnamese": ("cp1258",),
}
_LANGUAGE_GROUPS = {
    "Hungarian": "central", "Polish": "central", "Czech": "central", "Slovak": "central", "Romanian": "central",
    "Croatian": "central", "Slovene": "central", "Turkish": "turkish", "Lithuanian": "baltic", "Latvian": "baltic",
    "Vietnamese": "vietnamese",
}  # fmt: skip
_OTHER_ENCODINGS = (
    "koi8_r", "koi8_u", "cp1251", "iso8859_5", "cp866", "mac_cyrillic", "cp1253", "iso8859_7", "cp1255", "iso8859_8",
    "cp1256", "iso8859_6", "cp874", "cp932", "euc_jis_2004", "cp949", "gb18030", "big5", "big5hkscs",
)  # fmt: skip
_ERROR_HANDLER = "hf_llm_windows_1252"


@dataclass(frozen=True)
class TextEncoding:
    """How the bytes of a file become text: a codec of Python and how it treats what it cannot decode."""

    codec: str
    errors: str = "strict"


UTF8 = TextEncoding("utf-8")
_MIXED = TextEncoding("utf-8", _ERROR_HANDLER)  # UTF-8 and Windows-1252 in one file


def decode_text(content: bytes) -> str | None:
    """Decode the content of a file; None if it is not text or in no known encoding (`explain_undecodable`)."""
    encoding = detect_encoding(lambda: io.BytesIO(content))
    if encoding is None:
        return None
    decoder = _make_decoder(encoding)
    return decoder.decode(content).removeprefix("\ufeff")


def explain_undecodable(start: bytes) -> str:
    """Return the reason why a file that begins so was not decoded, as the ledger counts it."""
    return NOT_TEXT if b"\0" in start[:PEEK_BYTES] or _count_controls(start) else UNKNOWN_ENCODING


def open_text_file(path: Path) -> InputFile | None:
    """Open a text file, decompressed, to read it as UTF-8; None if it is not text or in no known encoding.

    The file is read twice. Raises the errors of `open_file`; damage of its compression is told by the second reading.
    """
    encoding = detect_encoding(lambda: open_file(path))
    if encoding is None:
        return None
    return transcode(open_file(path), encoding)


def transcode(file: InputFile, encoding: TextEncoding) -> InputFile:
    """Return a file that gives the text of another one in UTF-8, without its byte order mark."""
    if encoding == UTF8:
        return file
    return io.BufferedReader(_Transcoder(file, encoding), CHUNK_BYTES)


def read_start(path: Path) -> bytes:
    """Read the first bytes of a file, decompressed; nothing if its compression is damaged there."""
    with open_file(path) as file:
        return _read_before_damage(file, PEEK_BYTES)


class LineDecoder:
    """Decodes the lines of one file, as it is read. Only at a line that is not UTF-8 the whole file is looked at."""

    def __init__(self, path: Path):
        self.path = path
        self.encoding: TextEncoding | None = None
        self.is_detected = False

    def decode(self, line: bytes) -> str | None:
        """Decode a line, without a byte order mark; None if that is not possible."""
        try:
            return line.decode("utf-8").removeprefix("\ufeff")
        except UnicodeDecodeError:
            pass
        if not self.is_detected:
            self.encoding = detect_encoding(lambda: open_file(self.path))
            self.is_detected = True
        if self.encoding is None or self.encoding == UTF8:
            return None
        try:
            return line.decode(self.encoding.codec, self.encoding.errors)
        except UnicodeDecodeError:
            return None


def detect_encoding(open_again: Callable[[], io.BytesIO | InputFile]) -> TextEncoding | None:
    """Return the encoding of a file, which is opened as often as it has to be read; None if it is not text."""
    with open_again() as file:
        start = _read_before_damage(file, PEEK_BYTES)
    wide = detect_wide_encoding(start)
    if wide:
        return wide if _decodes(open_again, wide) else None
    if b"\0" in start:
        return None

    has_escapes = False
    decoder = codecs.getincrementaldecoder("utf-8")()
    is_utf8 = True
    for chunk in _read_chunks(open_again):
        has_escapes = has_escapes or bool(_ESCAPE_SEQUENCE.search(chunk))
        try:
            decoder.decode(chunk)
        except UnicodeDecodeError:
            is_utf8 = False
            break
    if is_utf8:
        escaped = [TextEncoding(codec) for codec in _ESCAPED_ENCODINGS] if has_escapes else []
        return next((encoding for encoding in escaped if _decodes(open_again, encoding)), UTF8)
    return _detect_legacy_encoding(open_again)


def detect_wide_encoding(start: bytes) -> TextEncoding | None:
    """Return the encoding that a file's start shows by a byte order mark, or by the zero bytes of UTF-16 and UTF-32."""
    for mark, codec in _BYTE_ORDER_MARKS:
        if start.startswith(mark):
            return TextEncoding(codec)

    # Of ASCII in UTF-16 every second byte is zero, of ASCII in UTF-32 three of four.
    if b"\0" not in start:
        return None
    if len(start) < MIN_WIDE_BYTES:
        return None
    for codec, width in (("utf-32-le", 4), ("utf-32-be", 4), ("utf-16-le", 2), ("utf-16-be", 2)):
        whole = start[: len(start) // width * width]
        try:
            text = codecs.getincrementaldecoder(codec)().decode(whole)
        except UnicodeDecodeError:
            continue
        if text and not _count_controls(text) and _is_one_script(text):
            return TextEncoding(codec)
    return None


def _is_one_script(text: str) -> bool:
    """Whether a text decoded from UTF-16 is text: the bytes of ASCII, in the wrong order, are rare Chinese characters.

    Text has spaces, line ends or digits, which in the wrong order are not characters of any script.
    """
    from unicodedata import category

    unassigned = sum(category(character) in ("Cn", "Co", "Cs") for character in text)
    spaces = sum(character.isspace() or character in "。、，" for character in text)
    ascii_count = len(text) - len(_NON_ASCII.findall(text))
    return not unassigned and (spaces > 0 or ascii_count > 0)


def _detect_legacy_encoding(open_again: Callable[[], io.BytesIO | InputFile]) -> TextEncoding | None:
    """Return the encoding of a file that is not UTF-8."""
    with open_again() as file:
        start = _read_before_damage(file, DECLARATION_BYTES)
    declared = _find_declaration(start)
    if declared and _decodes(open_again, declared):
        return declared

    sample, utf8_lines = _sample_lines(open_again)
    if b"\0" in sample:
        return None
    if utf8_lines or _has_utf8_characters(sample):
        _register_error_handler()
        mixed = sample.decode(_MIXED.codec, _MIXED.errors)
        if _is_pasted(sample) and _is_plausible(mixed):
            return _MIXED
    if utf8_lines > DAMAGE_RATIO * sample.count(b"\n"):
        return None

    for encoding in _list_candidates(sample):
        if _decodes(open_again, encoding):
            return encoding
    return None


def _list_candidates(sample: bytes) -> Iterator[TextEncoding]:
    """Yield the encodings in which a sample looks like text, the best first."""
    from charset_normalizer import from_bytes

    # It is shown only lines that are not ASCII, since it looks at a part of what it is given.
    latin_encodings = [codec for codecs_of_group in _LATIN_ENCODINGS.values() for codec in codecs_of_group]
    matches = from_bytes(sample[:DETECTION_BYTES], cp_isolation=[*latin_encodings, *_OTHER_ENCODINGS])
    best = matches.best()
    is_short = len(sample) < MIN_LANGUAGE_BYTES
    group = None
    if best and best.coherence >= MIN_COHERENCE and not is_short:
        group = _LANGUAGE_GROUPS.get(best.language, "western")

    if group in (None, "western") and _is_plausible_latin(_try_decode(sample, "cp1252")):
        yield TextEncoding("cp1252")
        return
    if len(sample) - len(sample.decode("ascii", "ignore")) < MIN_DETECTION_BYTES:
        return

    latin_texts = {}
    for codec in _LATIN_ENCODINGS[group] if group else latin_encodings:
        text = _try_decode(sample, codec)
        if _is_plausible_latin(text):
            latin_texts[codec] = text
    other_texts = {}
    for match in matches:
        text = _try_decode(sample, match.encoding)
        if match.encoding in _OTHER_ENCODINGS and _is_plausible(text):
            other_texts[match.encoding] = text

    # Latin letters look right in several encodings: only one that is better than all others is taken. Where the text
    # is long, the frequencies of letters tell between the encodings of other scripts.
    latin_codec = _choose_least_odd(latin_texts) if group or not other_texts else None
    if latin_codec:
        yield TextEncoding(latin_codec)
    elif other_texts and (not is_short or len({*other_texts.values(), *latin_texts.values()}) == 1):
        yield TextEncoding(next(iter(other_texts)))


def _choose_least_odd(texts: dict[str, str]) -> str | None:
    """Choose the encoding whose text has the fewest odd characters; None if two different texts have as few."""
    counts = {codec: len(_ODD_CHARACTER.findall(text)) for codec, text in texts.items()}
    least = [codec for codec, count in counts.items() if count == min(counts.values())]
    return least[0] if len({texts[codec] for codec in least}) == 1 else None


def _try_decode(sample: bytes, codec: str) -> str:
    """Decode a sample; empty if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return ""


def _is_plausible(text: str) -> bool:
    """Whether a text looks like text: few symbols and capitals within words, and no control characters."""
    if not text or _count_controls(text):
        return False
    non_ascii = len(_NON_ASCII.findall(text))
    odd = len(_ODD_CHARACTER.findall(text))
    return odd <= MAX_ODD_SHARE * non_ascii


def _is_plausible_latin(text: str) -> bool:
    """Whether a text looks like one in Latin letters, most of which are ASCII in every language."""
    non_ascii = len(_NON_ASCII_LETTER.findall(text))
    return _is_plausible(text) and non_ascii <= MAX_ACCENTED_SHARE * len(_LETTER.findall(text))


def _count_controls(text: str | bytes) -> bool:
    """Whether more than a few of the characters are control characters, which text does not have."""
    if isinstance(text, bytes):
        text = text.decode("latin-1")
        controls = len(re.findall("[\0-\x08\x0e-\x19\x1c-\x1f]", text))
    else:
        controls = len(_CONTROL_CHARACTER.findall(text))
    return controls > MAX_CONTROL_SHARE * len(text)


def _find_declaration(start: bytes) -> TextEncoding | None:
    """Return the encoding that a file names, if Python knows it; not UTF-8, which has already failed."""
    match = _DECLARATION.search(start)
    if not match:
        return None
    name = match[1].decode("ascii", "ignore").strip().lower()
    try:
        codec = codecs.lookup(_DECLARED_NAMES.get(name, name))
    except LookupError:
        return None
    is_text = getattr(codec, "_is_text_encoding", True)
    if not is_text or codec.name.startswith("utf"):
        return None
    return TextEncoding(codec.name)


def _sample_lines(open_again: Callable[[], io.BytesIO | InputFile]) -> tuple[bytes, int]:
    """Return lines that are not UTF-8, up to `SAMPLE_BYTES`, and how many lines hold good UTF-8 beyond ASCII."""
    sample = bytearray()
    utf8_lines = 0
    rest = b""
    for chunk in _read_chunks(open_again):
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > CHUNK_BYTES:  # a line without end
            lines.append(rest)
            rest = b""
        for line in lines:
            if line.isascii():
                continue
            if _is_utf8(line):
                utf8_lines += 1
            elif len(sample) < SAMPLE_BYTES:
                sample += line + b"\n"
    if not _is_utf8(rest):
        sample += rest + b"\n"
    return bytes(sample), utf8_lines


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _has_utf8_characters(sample: bytes) -> bool:
    """Whether there are characters of UTF-8 beyond ASCII among bytes that are not all UTF-8."""
    return not sample.decode("utf-8", "ignore").isascii()


def _is_pasted(sample: bytes) -> bool:
    """Whether the bytes that are not UTF-8 stand among ASCII, as those of Windows-1252 do.

    Those beside a character of UTF-8 are what is left of another, broken one.
    """
    text = sample.decode("utf-8", "surrogateescape")
    broken = re.search("(?<=[^\0-\x7f\udc80-\udcff])[\udc80-\udcff]|[\udc80-\udcff](?=[^\0-\x7f\udc80-\udcff])", text)
    undefined = re.search("[\udc81\udc8d\udc8f\udc90\udc9d]", text)
    return not broken and not undefined


def _register_error_handler() -> None:
    """Register the way to decode a byte that is not UTF-8 as one of Windows-1252."""

    def decode_byte(error: UnicodeError) -> tuple[str, int]:
        assert isinstance(error, UnicodeDecodeError)
        wrong = error.object[error.start : error.end]
        return wrong.decode("cp1252", "replace"), error.end

    codecs.register_error(_ERROR_HANDLER, decode_byte)


def _decodes(open_again: Callable[[], io.BytesIO | InputFile], encoding: TextEncoding) -> bool:
    """Whether a whole file, but for an incomplete character at its end, is in an encoding."""
    decoder = _make_decoder(encoding)
    try:
        for chunk in _read_chunks(open_again):
            decoder.decode(chunk)
    except UnicodeError:
        return False
    return True


def _make_decoder(encoding: TextEncoding) -> codecs.IncrementalDecoder:
    if encoding == _MIXED:
        _register_error_handler()
    return codecs.getincrementaldecoder(encoding.codec)(encoding.errors)


def _read_chunks(open_again: Callable[[], io.BytesIO | InputFile]) -> Iterator[bytes]:
    """Yield the file in chunks, up to its end or to damage of its compression."""
    with open_again() as file:
        while chunk := _read_before_damage(file, CHUNK_BYTES):
            yield chunk


def _read_before_damage(file: io.BytesIO | InputFile, size: int) -> bytes:
    """Read up to `size` bytes; fewer, or none, where the compression is damaged."""
    chunks = []
    try:
        while size > 0 and (chunk := file.read1(size)):
            chunks.append(chunk)
            size -= len(chunk)
    except DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
    return b"".join(chunks)


class _Transcoder(io.RawIOBase):
    """A stream of the text of a file, in UTF-8."""

    def __init__(self, file: InputFile, encoding: TextEncoding):
        self.file = file
        self.decoder = _make_decoder(encoding)
        self.pending = b""
        self.is_at_start = True

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self.pending:
            chunk = self.file.read1(CHUNK_BYTES)
            if not chunk:
                return 0
            text = self.decoder.decode(chunk)
            if self.is_at_start and text:
                text = text.removeprefix("\ufeff")
                self.is_at_start = False
            self.pending = text.encode("utf-8", "surrogatepass")

        size = min(len(buffer), len(self.pending))
        buffer[:size] = self.pending[:size]
        self.pending = self.pending[size:]
        return size

    def close(self) -> None:
        self.file.close()
        super().close()
