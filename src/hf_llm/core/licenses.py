"""Bring the names of licences into one form, and say which of them the Hugging Face Hub accepts.

The form is the Hub's identifier where it has one (https://huggingface.co/docs/hub/repositories-licenses), else SPDX's
in small letters (https://spdx.org/licenses, as `packaging` has them), else the name as it was given.
"""

import re
from collections.abc import Iterable

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

UNKNOWN = "unknown"
OTHER = "other"  # the Hub's word for a licence that is not in its list

# What the Hub accepts under `license`; it refuses an upload with any other.
HUB_LICENSES = frozenset(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl openrail++ osl-3.0 postgresql ofl-1.1 ncsa
    unlicense zlib pddl lgpl-lr deepfloyd-if-license fair-noncommercial-research-license apple-ascl
    apple-amlr openmdw-1.0 llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown other
    """.split()  # noqa: SIM905 - readable, and short enough to compare with the Hub's page
)

# Other names of the same licence, in the form of `_simplify`.
_ALIASES = {
    "apache": "apache-2.0",
    "apache2": "apache-2.0",
    "apache-2": "apache-2.0",
    "asl-2.0": "apache-2.0",
    "apache-software": "apache-2.0",
    "apache-software-2.0": "apache-2.0",
    "expat": "mit",
    "x11": "mit",
    "bsd-2": "bsd-2-clause",
    "2-clause-bsd": "bsd-2-clause",
    "simplified-bsd": "bsd-2-clause",
    "bsd-2-clause-simplified": "bsd-2-clause",
    "bsd-3": "bsd-3-clause",
    "3-clause-bsd": "bsd-3-clause",
    "new-bsd": "bsd-3-clause",
    "modified-bsd": "bsd-3-clause",
    "revised-bsd": "bsd-3-clause",
    "bsd-3-clause-new": "bsd-3-clause",
    "boost": "bsl-1.0",
    "boost-1.0": "bsl-1.0",
    "boost-software-1.0": "bsl-1.0",
    "c-uda-1.0": "c-uda",
    "cc0": "cc0-1.0",
    "cc-zero": "cc0-1.0",
    "cc-0": "cc0-1.0",
    "cc0-1.0-universal": "cc0-1.0",
    "creative-commons-zero": "cc0-1.0",
    "eclipse-public-1.0": "epl-1.0",
    "eclipse-public-2.0": "epl-2.0",
    "iscl": "isc",
    "isc-iscl": "isc",
    "mpl-2": "mpl-2.0",
    "mozilla-public-2.0": "mpl-2.0",
    "mozilla-public-2.0-mpl-2.0": "mpl-2.0",
    "odc-by-1.0": "odc-by",
    "odcby": "odc-by",
    "odbl-1.0": "odbl",
    "open-database": "odbl",
    "pddl-1.0": "pddl",
    "psf": "psf-2.0",
    "psfl": "psf-2.0",
    "psf-2": "psf-2.0",
    "python-software-foundation": "psf-2.0",
    "python-software-foundation-2": "psf-2.0",
    "sil-ofl-1.1": "ofl-1.1",
    "ofl": "ofl-1.1",
    "the-unlicense": "unlicense",
    "unlicence": "unlicense",
    "zope-public": "zpl-2.1",
    "none": UNKNOWN,
    "noassertion": UNKNOWN,
    "n-a": UNKNOWN,
    "not-specified": UNKNOWN,
    "unspecified": UNKNOWN,
    "": UNKNOWN,
}

# What stands between the licences of an SPDX expression, and of a list with commas.
_OPERATORS = ("AND", "OR", "(", ")", ",", ";", "/")
_OPERATOR = re.compile(r"(?:\s+|(?<=\)))(AND|OR)(?:\s+|(?=\())|([(),;/])", re.IGNORECASE)
_EXCEPTION = re.compile(r"\s+WITH\s+.*$", re.IGNORECASE)
_CREATIVE_COMMONS = (
    ("attribution", "by"),
    ("non-commercial", "nc"),
    ("noncommercial", "nc"),
    ("no-derivatives", "nd"),
    ("noderivatives", "nd"),
    ("noderivs", "nd"),
    ("share-alike", "sa"),
    ("sharealike", "sa"),
    ("-international", ""),
    ("-unported", ""),
    ("-generic", ""),
)
# `GPLv3`, `GPL v3`, `GNU GPL 3`, `LGPL-2.1+`, `GNU Lesser General Public License v2.1 or later`.
_GNU = re.compile(
    r"^(?:gnu-)?(?P<kind>[al]?gpl|gfdl)(?:-?v?(?P<version>\d(?:\.\d)?))?(?:-only|-or-later|-or-newer|\+)?$"
)
_GNU_NAMES = (
    ("affero-general-public", "agpl"),
    ("lesser-general-public", "lgpl"),
    ("library-general-public", "lgpl"),
    ("general-public", "gpl"),
    ("free-documentation", "gfdl"),
)


def normalize_license(name: str) -> str:
    """Return the one form of a licence's name: `Apache 2.0`, `apache` and `Apache-2.0` are `apache-2.0`.

    An SPDX expression keeps its operators: `MIT OR Apache-2.0` is `mit OR apache-2.0`. A name that nobody keeps a list
    of comes back as it is, without spaces at its ends.
    """
    name = " ".join(str(name).split())
    known = _look_up(name)
    if known:
        return known

    words = _parse_expression(name)
    if words is None:
        return name
    text = " ".join(words)
    return text.replace("( ", "(").replace(" )", ")").replace(" ,", ",").replace(" ;", ";")


def hub_licenses(names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Return the Hub's identifiers of these licences, and those licences that the Hub does not list, both sorted.

    Each licence of an expression counts, and each of a list with commas.
    """
    known = set()
    foreign = set()
    for name in names:
        whole = _look_up(name)
        pieces = [whole] if whole else split_licenses(name)
        for piece in pieces:
            identifier = _look_up(_EXCEPTION.sub("", piece)) or piece
            if identifier in HUB_LICENSES and identifier != OTHER:
                known.add(identifier)
            else:
                foreign.add(identifier)
    return sorted(known), sorted(foreign)


def split_licenses(name: str) -> list[str]:
    """Return the licences that an expression or a list names; a name that is neither, by itself."""
    words = _parse_expression(" ".join(str(name).split()))
    if words is None:
        return [name]
    return [word for word in words if word not in _OPERATORS]


def _parse_expression(name: str) -> list[str] | None:
    """Return the licences and operators of an SPDX expression or of a list; None where a piece is not a known licence.

    A text that only looks like a list is nobody's licence list: `Look, only on Sundays` has no known piece.
    """
    words = []
    for piece in _OPERATOR.split(name):
        if not piece or not piece.strip():
            continue
        if piece.upper() in _OPERATORS:
            words.append("OR" if piece == "/" else piece.upper())
            continue

        licence = _EXCEPTION.sub("", piece)
        known = _look_up(licence)
        if known is None:
            return None
        words.append(known + piece[len(licence) :])
    return words


def spdx_identifier(name: str) -> str | None:
    """Return SPDX's own spelling of a licence, `PSF-2.0`; None where it is not one of its list."""
    try:
        return canonicalize_license_expression(name)
    except InvalidLicenseExpression:
        return None


def _look_up(name: str) -> str | None:
    """Return the one form of a single licence; None where no list has it."""
    lower = name.strip().lower()
    simple = _simplify(name)
    for candidate in (lower, simple):
        if candidate in HUB_LICENSES:
            return candidate
    if simple in _ALIASES:
        return _ALIASES[simple]

    gnu = _GNU.match(_shorten_gnu(simple))
    if gnu:
        version = gnu["version"]
        if version and "." not in version:
            version += ".0"
        identifier = f"{gnu['kind']}-{version}" if version and gnu["kind"] != "gfdl" else gnu["kind"]
        if identifier in HUB_LICENSES:
            return identifier

    for candidate in (simple, lower):
        if candidate and " " not in candidate and spdx_identifier(candidate):
            return candidate
    return None


def _simplify(name: str) -> str:
    """Return a name in small letters with hyphens, without the words that say only that it is a licence."""
    simple = name.strip().lower().replace('"', "").replace("'", "")
    simple = re.sub(r"\blicen[cs]es?\b|\bthe\b|\bversion\b", " ", simple)
    simple = re.sub(r"\bv(?=\d)|(?<=[a-z])v(?=\d)", "-", simple)
    simple = re.sub(r"[\s,_()/]+", "-", simple)
    simple = re.sub(r"-{2,}", "-", simple).strip("-.")
    if simple.startswith(("creative-commons-", "cc-")):
        simple = simple.replace("creative-commons-", "cc-")
        for long, short in _CREATIVE_COMMONS:
            simple = simple.replace(long, short)
    return simple


def _shorten_gnu(simple: str) -> str:
    """Write the long names of the GNU licences short: `gnu-lesser-general-public-2.1` as `gnu-lgpl-2.1`."""
    for long, short in _GNU_NAMES:
        if long in simple:
            simple = simple.replace(long, short)
            break
    return re.sub(r"-(?:a|l)?gpl-?v?\d?(?:\.\d)?\+?$", "", simple) if simple.count("gpl") > 1 else simple
