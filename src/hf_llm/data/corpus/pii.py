"""Replace what identifies a person by what it was: `<email>`, `<phone>`, `<ip>`, `<card>`, `<iban>`.

What looks like it but is something else stays: dates, prices, ISBNs, version numbers, decorators, private addresses
(RFC 1918) and the domains reserved for examples (RFC 2606).
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

KINDS = ("email", "iban", "card", "ip", "phone")  # in the order in which they are searched for
LOOK_BACK_CHARS = 24  # before a number, for a word that says what it is

_EMAIL = re.compile(
    r"(?<![\w.+/:@-])[A-Za-z0-9][\w.!#$%&'*+=?^`{|}~-]{0,63}(?:@|\s?[\[(]\s?at\s?[\])]\s?)"
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?(?:\.|\s?[\[(]\s?dot\s?[\])]\s?)){1,6}[A-Za-z]{2,24}(?![\w-])"
)
_HAS_AT_SIGN = re.compile(r"[\w.]@[A-Za-z0-9]|[\[(]\s?at\s?[\])]")
_EXAMPLE_DOMAIN = re.compile(r"@(?:[\w-]+\.)*(?:example\.(?:com|net|org)|[\w-]+\.(?:example|test|invalid|localhost))$")
# The patterns below start with what they match, and look back after it: so a text is searched ten times as fast.
_IPV4 = re.compile(r"\d(?<![\w.:/-]\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\d|/\d)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")
_HAS_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")
_VERSION_WORD = re.compile(r"(?:\bv|version|release|section|chapter|build|firmware|§)\.?\s*$", re.IGNORECASE)
_CARD = re.compile(r"[3-6](?<![\w.,-].)\d{3}(?:[ -]?\d){9,15}(?![\w-]|[.,]\d)")
_IBAN = re.compile(r"[A-Z](?<!\w.)[A-Z]\d{2} ?[A-Z0-9]{4}(?: ?[A-Z0-9]{2,4}){2,7}\b")
_PHONE = re.compile(r"[+(\d](?<![\w.,:/#$€£=+-].)(?:(?<=[+(])\d)?(?:[\d().\xa0‐-–-]|[ /](?=[\d(])){5,19}\d(?![\w])")
_PHONE_WORD = re.compile(
    r"(?:phones?|telephone|telefon|tel|tél|mobile|mobil|móvil|cell|handy|fax|whatsapp|hotline|dial"
    r"|call(?: \w+)?(?: (?:on|at))?)"
    r"(?: (?:number|no|is))?[\s.:#()]*$",
    re.IGNORECASE,
)
_DATE = re.compile(r"\D?(?:\d{4}[-./]\d{1,2}[-./]\d{1,2}|\d{1,2}[-./]\d{1,2}[-./]\d{2,4}|\d{4}\s?[-–]\s?\d{4})\D?")


@dataclass
class Redaction:
    """`pii` of the rules."""

    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    """What to replace: any of email, iban, card, ip, phone."""

    regions: list[str] = field(default_factory=lambda: ["US"])
    """Countries (ISO 3166) whose phone numbers are recognized without their +code."""

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise ValueError(f"kinds: {unknown} is not one of {', '.join(KINDS)}")
        wrong = [region for region in self.regions if not re.fullmatch("[A-Z]{2}", region)]
        if wrong:
            raise ValueError(f"regions: {wrong} are not codes of countries; write them as in [US, GB, DE]")


def redact_text(text: str, settings: Redaction) -> tuple[str, Counter]:
    """Replace what identifies people. Returns the text, and how many of each kind were replaced."""
    counts = Counter()
    for kind in KINDS:
        if kind in settings.kinds:
            text = _REDACTORS[kind](text, settings, counts)
    return text, counts


def _replace_matches(
    pattern: re.Pattern, text: str, kind: str, counts: Counter, is_meant: Callable[[re.Match], bool]
) -> str:
    """Replace the matches for which `is_meant` holds by `<kind>`, and add their number to `counts`."""

    def replace_match(match: re.Match) -> str:
        if not is_meant(match):
            return match[0]
        counts[kind] += 1
        return f"<{kind}>"

    return pattern.sub(replace_match, text)


def _redact_emails(text: str, settings: Redaction, counts: Counter) -> str:
    if not _HAS_AT_SIGN.search(text):
        return text
    return _replace_matches(_EMAIL, text, "email", counts, _is_personal_email)


def _is_personal_email(match: re.Match) -> bool:
    is_example = _EXAMPLE_DOMAIN.search(match[0])
    is_git_address = match[0].startswith("git@")
    return not is_example and not is_git_address


def _redact_ips(text: str, settings: Redaction, counts: Counter) -> str:
    text = _replace_matches(_IPV4, text, "ip", counts, _is_public_ipv4)
    if _HAS_COLONS.search(text):
        text = _replace_matches(_IPV6, text, "ip", counts, lambda match: _is_public_address(match[0]))
    return text


def _is_public_ipv4(match: re.Match) -> bool:
    return _is_public_address(match[0]) and not _has_before(match, _VERSION_WORD)


def _is_public_address(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _has_before(match: re.Match, pattern: re.Pattern) -> bool:
    """Whether `pattern` matches in the characters before `match`."""
    start = max(0, match.start() - LOOK_BACK_CHARS)
    return bool(pattern.search(match.string[start : match.start()]))


def _redact_cards(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace_matches(_CARD, text, "card", counts, lambda match: _is_card_number(re.sub(r"\D", "", match[0])))


def _is_card_number(digits: str) -> bool:
    """Whether the check digit is right (Luhn's algorithm, ISO/IEC 7812) and the digits are not all the same."""
    total = sum(int(digit) for digit in digits[-1::-2])
    for digit in digits[-2::-2]:
        tens, ones = divmod(2 * int(digit), 10)
        total += tens + ones
    return total % 10 == 0 and len(set(digits)) > 1


def _redact_ibans(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace_matches(_IBAN, text, "iban", counts, lambda match: _is_iban(match[0].replace(" ", "")))


def _is_iban(iban: str) -> bool:
    """Whether the length and the check digits are right (ISO 13616): letters count from A = 10, the rest is 1."""
    rotated = iban[4:] + iban[:4]
    number = "".join(str(int(character, 36)) for character in rotated)
    return 15 <= len(iban) <= 34 and int(number) % 97 == 1


def _redact_phones(text: str, settings: Redaction, counts: Counter) -> str:
    return _replace_matches(_PHONE, text, "phone", counts, lambda match: _is_phone(match, settings.regions))


def _is_phone(match: re.Match, regions: list[str]) -> bool:
    """Whether a number is valid by its country's plan, and written as a phone number or announced as one (`Tel.`)."""
    import phonenumbers
    from phonenumbers import Leniency, PhoneNumberMatcher

    number = match[0]
    digits = re.sub(r"\D", "", number)
    if not 7 <= len(digits) <= 15:
        return False

    if number.startswith("+"):
        return bool(list(PhoneNumberMatcher(number, None, leniency=Leniency.VALID)))
    if _has_before(match, _PHONE_WORD):
        return any(phonenumbers.is_possible_number_string(number, region) for region in regions)

    is_isbn = digits.startswith(("978", "979"))
    is_plain_number = digits == number
    if _DATE.fullmatch(number) or is_isbn or is_plain_number:
        return False
    return any(list(PhoneNumberMatcher(number, region, leniency=Leniency.STRICT_GROUPING)) for region in regions)


_REDACTORS = {
    "email": _redact_emails,
    "iban": _redact_ibans,
    "card": _redact_cards,
    "ip": _redact_ips,
    "phone": _redact_phones,
}
