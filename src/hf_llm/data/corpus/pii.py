"""Replace what identifies a person by what it was: `<email>`, `<phone>`, `<ip>`, `<card>`, `<iban>`.

What looks alike and is not meant stays: dates, prices, ISBNs, version numbers, decorators, private addresses (RFC 1918)
and the domains set aside for examples (RFC 2606).
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from datatrove.pipeline.formatters.base import BaseFormatter

KINDS = ("email", "iban", "card", "ip", "phone")  # in the order in which they are looked for

_EMAIL = re.compile(
    r"(?<![\w.+/:@-])[A-Za-z0-9][\w.!#$%&'*+=?^`{|}~-]{0,63}(?:@|\s?[\[(]\s?at\s?[\])]\s?)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)){1,6}[A-Za-z]{2,24}(?![\w-])"
)
_AT = re.compile(r"[\w.]@[A-Za-z0-9]|[\[(]\s?at\s?[\])]")
_EXAMPLE = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|net|org)|[\w-]+\.(?:example|test|invalid|localhost))$")
# These start with what they look for, and look back after it: so a text is searched ten times as fast.
_IPV4 = re.compile(r"\d(?<![\w.:/-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d|/\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION = re.compile(r"(?:\bv|version|release|section|chapter|build|firmware|§)\.?\s*$", re.IGNORECASE)
_CARD = re.compile(r"[3-6](?<![\w.,-].)\d{3}(?:[ -]?\d){9,15}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2} ?[A-Z0-9]{4}(?: ?[A-Z0-9]{2,4}){2,7}\b")
_PHONE = re.compile(r"[+(\d](?<![\w.,:/#$€£=+-].)(?:(?<=[+(])\d)?(?:[\d().\xa0‐-–-]|[ /](?=[\d(])){5,19}\d(?![\w])")
_ANNOUNCED = re.compile(
    r"(?:phones?|telephone|telefon|tel|tél|mobile|mobil|móvil|cell|handy|fax|whatsapp|hotline|dial"
    r"|call(?: \w+)?(?: (?:on|at))?)"
    r"(?: (?:number|no|is))?[\s.:#()]*$",
    re.IGNORECASE,
)
_DATE = re.compile(r"\D?(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{4}\s?[-–]\s?\d{4})\D?")


@dataclass
class Redaction:
    """`pii` of the rules."""

    kinds: list[str] = field(default_factory=lambda: list(KINDS), metadata={"help": f"of {', '.join(KINDS)}"})
    regions: list[str] = field(
        default_factory=lambda: ["US"],
        metadata={"help": "countries (ISO 3166) whose phone numbers are known without their +code"},
    )

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"kinds: {unknown} is none of {', '.join(KINDS)}")
        wrong = [region for region in self.regions if not re.fullmatch("[A-Z]{2}", region)]
        if wrong:
            raise ValueError(f"regions: {wrong} are no codes of countries; write them as in [US, GB, DE]")


class Redact(BaseFormatter):
    """Documents in, the same documents out, redacted. Counts go to `redacted_<kind>`."""

    name = "pii"

    def __init__(self, settings: Redaction):
        super().__init__()
        self.settings = settings

    def format(self, text: str) -> str:
        text, counts = redacted(text, self.settings)
        for kind, count in counts.items():
            self.stat_update(f"redacted_{kind}", value=count)
        return text


def redacted(text: str, settings: Redaction) -> tuple[str, Counter]:
    """The text without what identifies people, and how much of each kind was replaced."""
    counts = Counter()
    for kind in KINDS:
        if kind in settings.kinds:
            text = _FINDERS[kind](text, settings, counts)
    return text, counts


def _replace(pattern: re.Pattern, text: str, kind: str, counts: Counter, is_meant: Callable[[re.Match], bool]) -> str:
    def replacement(match: re.Match) -> str:
        if not is_meant(match):
            return match[0]
        counts[kind] += 1
        return f"<{kind}>"

    return pattern.sub(replacement, text)


def _emails(text: str, settings: Redaction, counts: Counter) -> str:
    if not _AT.search(text):
        return text
    return _replace(_EMAIL, text, "email", counts, lambda m: not _EXAMPLE.search(m[0]) and m[0][:4] != "git@")


def _addresses(text: str, settings: Redaction, counts: Counter) -> str:
    text = _replace(_IPV4, text, "ip", counts, lambda m: _is_public(m[0]) and not _follows(_VERSION, m))
    if _COLONS.search(text):
        text = _replace(_IPV6, text, "ip", counts, lambda m: _is_public(m[0]))
    return text


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _follows(pattern: re.Pattern, match: re.Match) -> bool:
    return bool(pattern.search(match.string[max(0, match.start() - 24) : match.start()]))


def _cards(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace(_CARD, text, "card", counts, lambda m: _luhn(re.sub(r"\D", "", m[0])))


def _luhn(digits: str) -> bool:
    """The check digit of ISO/IEC 7812."""
    doubled = (sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (sum(map(int, digits[-1::-2])) + sum(doubled)) % 10 == 0 and len(set(digits)) > 1


def _ibans(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace(_IBAN, text, "iban", counts, lambda m: _mod97(m[0].replace(" ", "")))


def _mod97(iban: str) -> bool:
    """The check digits of ISO 13616."""
    number = "".join(str(int(character, 36)) for character in iban[4:] + iban[:4])
    return 15 <= len(iban) <= 34 and int(number) % 97 == 1


def _phones(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace(_PHONE, text, "phone", counts, lambda m: _is_phone(m, settings.regions))


def _is_phone(match: re.Match, regions: list[str]) -> bool:
    """Valid by its country's plan, and written as one, or announced as one (`Tel.`)."""
    import phonenumbers
    from phonenumbers import Leniency, PhoneNumberMatcher

    digits = re.sub(r"\D", "", match[0])
    if not 7 <= len(digits) <= 15:
        return False
    if match[0].startswith("+"):
        return bool(list(PhoneNumberMatcher(match[0], None, leniency=Leniency.VALID)))
    if _follows(_ANNOUNCED, match):
        return any(phonenumbers.is_possible_number_string(match[0], region) for region in regions)
    if _DATE.fullmatch(match[0]) or digits[:3] in ("978", "979") or digits == match[0]:
        return False
    return any(list(PhoneNumberMatcher(match[0], region, leniency=Leniency.STRICT_GROUPING)) for region in regions)


_FINDERS = {"email": _emails, "iban": _ibans, "card": _cards, "ip": _addresses, "phone": _phones}
