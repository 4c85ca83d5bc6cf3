"""Text files in every encoding that is met: decoded whole and right, or left out whole."""

import gzip
import io
import os
import zipfile
from pathlib import Path

import pytest

from hf_llm.data.files.read_errors import ReadErrors
from hf_llm.data.files.text_encoding import decode_text, detect_encoding, open_text_file
from hf_llm.data.files.text_files import read_text_documents

REAL = Path(os.environ.get("HF_LLM_DATA", "."))
ENGLISH = "The harbour was quiet in the morning, and the men carried their baskets up the steps. " * 30
# Sentences with the letters that tell the encodings of a language apart.
TEXTS = {
    "french": "L’été dernier, à Noël, l’élève reçut une lettre où l’on disait : « Ça va très bien, cœur léger ! »\n",
    "german": "Die Größe der Bäume überraschte die Fußgänger; „schöne Äpfel“, sagte die Bäuerin, für fünf Öre.\n",
    "spanish": "El niño comió jamón y añadió: ¿Qué pasó ayer? ¡Nada! La señora Muñoz volvió mañana según él.\n",
    "polish": "Zażółć gęślą jaźń, powiedział źrebak, a potem poszedł wzdłuż łąki, żeby odnaleźć swoją matkę.\n",
    "czech": "Příliš žluťoučký kůň úpěl ďábelské ódy, zatímco děti běžely přes řeku k dřevěné chalupě.\n",
    "russian": "В начале было слово, и человек сказал его тихо, чтобы никто не услышал, кроме ветра и воды.\n",
    "greek": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.\n",
    "hebrew": "כל בני האדם נולדו בני חורין ושווים בערכם ובזכויותיהם, וכולם חוננו בתבונה ובמצפון.\n",
    "japanese": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。\n",
    "chinese": "人人生而自由，在尊严和权利上一律平等。他们赋有理性和良心，并应以兄弟关系的精神相对待。\n",
    "korean": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다. 인간은 천부적으로 이성을 받았다.\n",
}
WIDE = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("language", TEXTS)
def test_unicode_is_read_with_and_without_a_byte_order_mark(language, encoding):
    text = TEXTS[language] * 3
    assert decode_text(text.encode(encoding)) == text


@pytest.mark.parametrize(
    ("language", "encoding"),
    [
        ("french", "cp1252"), ("german", "cp1252"), ("spanish", "cp1252"), ("spanish", "latin-1"),
        ("french", "mac_roman"), ("german", "cp850"), ("polish", "cp1250"), ("polish", "iso8859_2"),
        ("czech", "cp1250"), ("russian", "cp1251"), ("russian", "koi8_r"), ("russian", "cp866"), ("greek", "cp1253"),
        ("hebrew", "cp1255"), ("japanese", "shift_jis"), ("japanese", "euc_jp"), ("japanese", "iso2022_jp"),
        ("chinese", "gb18030"), ("korean", "euc_kr"),
    ],
)  # fmt: skip
def test_an_old_encoding_is_recognised_or_the_file_is_left_out_whole(language, encoding):
    content = (TEXTS[language] * 8).encode(encoding, "ignore")
    text = decode_text(content)
    assert text in (content.decode(encoding), None)
    if encoding in ("cp1252", "latin-1", "cp1250", "iso2022_jp"):  # of so short a text others may stay unknown
        assert text is not None


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"It was \x93good\x94 \x96 the caf\xe9\x92s best.", "It was “good” – the café’s best."),
        # UTF-8 into which Windows-1252 was pasted
        ("a naïve “idea”\n".encode() + b"and a caf\xe9\x92s one\n", "a naïve “idea”\nand a café’s one\n"),
        # cut within a character, as by `head -c`
        ("the last word is café".encode()[:-1], "the last word is caf"),
        (b"\xef\xbb\xbf", ""),
        (b"", ""),
        (b"<?xml encoding='ISO-8859-1'?><p>caf\xe9</p>", "<?xml encoding='ISO-8859-1'?><p>café</p>"),
        (b"# -*- coding: koi8-r -*-\n# \xf0\xd2\xc9\xd7\xc5\xd4\n", "# -*- coding: koi8-r -*-\n# Привет\n"),
        (b"\\usepackage[latin2]{inputenc}\nza\xbf\xf3\xb3\xe6", "\\usepackage[latin2]{inputenc}\nzażółć"),
        (b"Character set encoding: ISO-8859-1\n\xe9t\xe9", "Character set encoding: ISO-8859-1\nété"),
    ],
)  # fmt: skip
def test_single_bytes_declarations_and_cuts(content, text):
    assert decode_text(content) == text


@pytest.mark.parametrize(
    "content",
    [
        bytes(range(256)) * 20,
        b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + os.urandom(50) * 40,
        gzip.compress(ENGLISH.encode()),
        "多摩美術大学の図書館\n".encode() * 50 + "多摩".encode()[:-1] + b" broken\n" + "多摩美術\n".encode() * 50,
        b"caf\x81\xe9 \x8d\n",
        "人人生而自由\n".encode("utf-16-le")[:-1] * 3 + b"\0\0\0",
    ],
)
def test_what_is_not_text_or_is_damaged_is_left_out(content):
    assert decode_text(content) is None


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le", "utf-8", "mixed"])
def test_no_paragraph_is_lost_out_of_the_middle(tmp_path, encoding):
    """Whatever stands where: what is read of a file is all of it."""
    paragraphs = [f"{ENGLISH} Paragraph {i}.\n\n" for i in range(120)]
    paragraphs[60] = "Of the café’s “naïve” guests, the last came at 5 – and left.\n\n"
    text = "".join(paragraphs)
    if encoding == "mixed":
        content = (
            text.replace("Paragraph 3.", "Paragraph 3, déjà vu.").encode().replace("café’s".encode(), b"caf\xe9\x92s")
        )
        text = text.replace("Paragraph 3.", "Paragraph 3, déjà vu.")
    else:
        content = text.encode(encoding)
    (tmp_path / "a.txt").write_bytes(content)
    errors = ReadErrors()
    documents = list(read_text_documents(tmp_path / "a.txt", 20_000, errors))
    assert "".join(documents) == text and not errors.dropped


def test_a_compressed_file_is_decoded_and_damage_of_its_compression_is_left_to_the_reader(tmp_path):
    path = tmp_path / "a.txt.gz"
    text = TEXTS["german"] * 5000
    path.write_bytes(gzip.compress(text.encode("cp1252")))
    with open_text_file(path) as file:
        assert file.read().decode() == text
    path.write_bytes(path.read_bytes()[:-100])
    errors = ReadErrors()
    documents = list(read_text_documents(path, 10**9, errors))
    assert text.startswith("".join(documents)) and documents and errors.dropped == {"damaged file": 1}


@pytest.mark.skipif(not (REAL / "nltk_corpora/inaugural.zip").is_file(), reason="needs HF_LLM_DATA")
def test_a_speech_in_big5_is_read_whole_with_its_dashes():
    content = zipfile.ZipFile(REAL / "nltk_corpora/inaugural.zip").read("inaugural/2005-Bush.txt")
    text = decode_text(content)
    assert detect_encoding(lambda: io.BytesIO(content)).codec == "big5"
    assert text == content.decode("big5") and "years of sabbatical—and then" in text


@pytest.mark.skipif(not (REAL / "langid/udhr2.zip").is_file(), reason="needs HF_LLM_DATA")
def test_the_declaration_of_human_rights_is_never_read_in_a_wrong_encoding():
    archive = zipfile.ZipFile(REAL / "langid/udhr2.zip")
    encodings = {
        "fra": "cp1252 mac_roman cp850", "deu": "cp1252", "spa": "cp1252 cp850", "por_PT": "cp1252 cp850",
        "ita": "cp1252 cp850", "isl": "cp1252", "pol": "cp1250 iso8859_2", "ces": "cp1250 iso8859_2", "hun": "cp1250",
        "tur": "cp1254", "lit": "cp1257", "rus": "cp1251 koi8_r cp866 iso8859_5", "ukr": "cp1251 koi8_u",
        "ell_monotonic": "cp1253", "heb": "cp1255", "arb": "cp1256", "jpn": "shift_jis euc_jp", "kor": "euc_kr",
        "cmn_hans": "gb18030", "cmn_hant": "big5", "tha": "cp874", "vie": "cp1258",
    }  # fmt: skip
    left_out = []
    for language, codecs in encodings.items():
        name = next(name for name in archive.namelist() if name.startswith(f"udhr2/{language}"))
        text = archive.read(name).decode()
        for codec in codecs.split():
            content = text.encode(codec, "ignore")
            decoded = decode_text(content)
            assert decoded in (content.decode(codec), None), (language, codec)
            left_out += [(language, codec)] if decoded is None else []
    assert len(left_out) <= 3, left_out
