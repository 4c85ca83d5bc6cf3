"""Accuracy and speed of language identifiers that work with no download.

    HF_LLM_DATA=... python benchmarks/language_identification.py            # the tables of docs/filters.md
    HF_LLM_DATA=... python benchmarks/language_identification.py fasttext   # one candidate

Three sets: sentences of news in 20 languages (langid/lingua_sentences, 300 lines each), the Universal Declaration of
Human Rights (langid/udhr2.zip) line by line and as whole documents in the languages that have a two-letter code, and
whole declarations in languages that no candidate may know, of which none should pass for English. Candidates other
than the one in use are tried where they are installed: `pip install py3langid lingua-language-detector`.
"""

import os
import sys
import time
import zipfile
from collections.abc import Callable, Iterable
from importlib.util import find_spec
from pathlib import Path
from statistics import mean

from hf_llm.data.corpus.filters.language import FASTTEXT_LANGUAGES, identify_languages

DATA = Path(os.environ["HF_LLM_DATA"], "langid")
Identify = Callable[[list[str]], list[tuple[str, float]]]

# Files of the declaration, named by ISO 639-3, in languages with a two-letter code (ISO 639-1).
_DECLARATIONS = """
afr:af amh:am arb:ar ast:ast azj_latn:az bel:be ben:bn bod:bo bos_latn:bs bre:br bul:bg cat:ca ceb:ceb ces:cs ckb:ckb
cmn_hans:zh cmn_hant:zh cym:cy dan:da deu:de ell_monotonic:el eng:en epo:eo est:et eus:eu fin:fi fra:fr gla:gd gle:ga
glg:gl guj:gu heb:he hin:hi hrv:hr hun:hu hye:hy ind:id isl:is ita:it jav:jv jpn:ja kan:kn kat:ka kaz:kk khm:km kir:ky
kor:ko lao:lo lat:la lav:lv lit:lt ltz:lb mal:ml mar:mr mkd:mk mlt:mt mya:my nep:ne nld:nl nno:nn nob:no pan:pa
pes_1:fa pol:pl por_BR:pt por_PT:pt ron:ro rus:ru san:sa slk:sk slv:sl som:so spa:es srp_cyrl:sr sun:su swe:sv swh:sw
tam:ta tat:tt tgk:tg tgl:tl tha:th tur:tr uig_arab:ug ukr:uk urd:ur uzn_latn:uz vie:vi yor:yo zlm:ms
"""
DECLARATIONS = dict(word.split(":") for word in _DECLARATIONS.split())
# Another name for the same written language, or one that a label of the set does not tell apart.
SAME = {"nb": "no", "fil": "tl", "als": "sq", "arz": "ar", "wuu": "zh", "yue": "zh", "nds-nl": "nds", "iw": "he"}


def py3langid() -> Identify:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    return lambda texts: [(label, float(score)) for label, score in map(identifier.classify, texts)]


def lingua(low_accuracy: bool) -> Identify:
    from lingua import LanguageDetectorBuilder

    builder = LanguageDetectorBuilder.from_all_languages().with_preloaded_language_models()
    detector = (builder.with_low_accuracy_mode() if low_accuracy else builder).build()

    def run(texts: list[str]) -> list[tuple[str, float]]:
        found = [detector.compute_language_confidence_values(text)[0] for text in texts]
        return [(best.language.iso_code_639_1.name.lower(), best.value) for best in found]

    return run


def candidates(only: list[str]) -> dict[str, Callable[[], Identify]]:
    known = {"fasttext": lambda: identify_languages}
    if find_spec("py3langid"):
        known["py3langid"] = py3langid
    if find_spec("lingua"):
        known |= {"lingua": lambda: lingua(False), "lingua low": lambda: lingua(True)}
    return {name: make for name, make in known.items() if not only or name in only}


def sentences() -> dict[str, list[str]]:
    """Language to lines of news."""
    folder = DATA / "lingua_sentences"
    return {path.stem: path.read_text(encoding="utf-8").splitlines() for path in sorted(folder.glob("*.txt"))}


def declarations() -> tuple[dict[str, list[str]], list[str]]:
    """Language to declarations, whole; and those in languages with no two-letter code."""
    known, unknown = {}, []
    with zipfile.ZipFile(DATA / "udhr2.zip") as archive:
        for name in sorted(archive.namelist()):
            code, text = Path(name).stem, archive.read(name).decode("utf-8").strip()
            if code in DECLARATIONS:
                known.setdefault(DECLARATIONS[code], []).append(text)
            elif text and code[:3] not in FASTTEXT_LANGUAGES and not code.isdigit():
                unknown.append(text)
    return known, unknown


def lines_of(texts: Iterable[str]) -> list[str]:
    return [line.strip() for text in texts for line in text.splitlines() if len(line.strip()) >= 40]


def accuracy(run: Identify, by_language: dict[str, list[str]]) -> dict[str, float]:
    """Share of right answers by language."""
    shares = {}
    for language, texts in by_language.items():
        right = sum(SAME.get(found, found) == language for found, _ in run(texts))
        shares[language] = right / len(texts)
    return shares


def per_second(run: Identify, texts: list[str]) -> float:
    start = time.perf_counter()
    run(texts)
    return len(texts) / (time.perf_counter() - start)


def main() -> None:
    news = sentences()
    known, unknown = declarations()
    lines = {language: lines_of(texts) for language, texts in known.items()}
    everything = [line for texts in news.values() for line in texts]
    pages = [text for texts in known.values() for text in texts]
    by_language = {}
    print(
        f"{'':12} {'news':>7} {'UDHR lines':>11} {'UDHR whole':>11} {'for English':>12} {'lines/s':>9} {'pages/s':>9}"
    )
    for name, make in candidates(sys.argv[1:]).items():
        run = make()
        run(everything[:50])
        by_language[name] = accuracy(run, news)
        taken = sum(language == "en" and score >= 0.65 for language, score in run(unknown))
        print(
            f"{name:12} {mean(by_language[name].values()):11.1%} {mean(accuracy(run, lines).values()):11.1%} "
            f"{mean(accuracy(run, known).values()):11.1%} {f'{taken} of {len(unknown)}':>11} "
            f"{per_second(run, everything):11,.0f} {per_second(run, pages):11,.0f}"
        )
    print("\nnews by language")
    print(f"{'':12} " + " ".join(f"{language:>6}" for language in news))
    for name, shares in by_language.items():
        print(f"{name:12} " + " ".join(f"{share:6.1%}" for share in shares.values()))


if __name__ == "__main__":
    main()
