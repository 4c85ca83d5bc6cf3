"""Drop texts written for search engines or by a page's machinery: advertisements, link farms, notices, placeholders."""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cache

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.data.corpus.word_tokenizer import word_counts

SALES = (
    "buy now", "order now", "buy cheap", "buy online", "order online", "shop now", "click here", "click the link",
    "act now", "call now", "apply now", "limited time", "best price", "lowest price", "cheap price",
    "free shipping", "money back", "money-back", "risk free", "risk-free", "100% free", "100% guaranteed",
    "satisfaction guaranteed", "special offer", "exclusive offer", "discount code", "promo code", "coupon code",
    "free trial", "free download", "no prescription", "without prescription", "payday loan", "instant approval",
    "bad credit", "no deposit", "casino bonus", "online casino", "free spins", "sports betting", "make money",
    "earn money", "extra income", "work from home", "passive income", "get rich", "forex signals", "binary options",
    "crypto investment", "weight loss pills", "lose weight fast", "male enhancement", "replica watches",
    "seo services", "buy backlinks", "high quality backlinks", "web hosting deals", "essay writing service",
    "visit our website", "check out our website", "best deals", "huge discount", "% off",
)  # fmt: skip
NOTICES = (
    "we use cookies", "uses cookies", "use of cookies", "cookie policy", "cookie settings", "accept cookies",
    "accept all cookies", "manage cookies", "enable cookies", "enable javascript", "javascript is disabled",
    "javascript is required", "requires javascript", "turn on javascript", "javascript enabled",
    "browser does not support", "your browser", "privacy policy", "terms of service", "terms of use",
    "terms and conditions", "all rights reserved", "page not found", "access denied", "are you a robot", "captcha",
    "verify you are human", "sign up for our newsletter", "subscribe to our newsletter", "forgot your password",
    "log in to continue", "please log in", "create an account", "add to cart", "skip to content",
    "skip to main content", "follow us on", "share this", "powered by wordpress",
)  # fmt: skip
_PLACEHOLDER_LIST = """
lorem ipsum dolor sit amet consectetur adipiscing adipisicing elit sed eiusmod tempor incididunt labore dolore magna
aliqua enim minim veniam quis nostrud exercitation ullamco laboris nisi aliquip commodo consequat duis aute irure
reprehenderit voluptate velit cillum fugiat nulla pariatur excepteur sint occaecat cupidatat proident culpa qui
officia deserunt mollit anim laborum vestibulum pellentesque curabitur vivamus phasellus aliquam donec
"""
PLACEHOLDER = frozenset(_PLACEHOLDER_LIST.split())
_LINKS = ("http://", "https://", "www.", "[url", "href=")
_LETTERS = re.compile("[a-z]+")
_SHORTEST_KEYWORD = 4  # letters; shorter ones are mostly the grammar of a language
_FREQUENT_LIST = """
that this with from have they will your their which when were been would there what about more some them than then
these those into only over such also after other could very here upon said where while most because does each even
much many like just should through must being between before under well same both
"""
_FREQUENT = frozenset(_FREQUENT_LIST.split())


@dataclass
class Spam:
    """`spam` of the rules."""

    max_links_per_word: float = field(default=0.08, metadata={"help": "with five links at least"})
    max_keyword: float = field(default=0.1, metadata={"help": "largest share of words that are the same noun"})
    max_sales_phrases: float = field(default=0.015, metadata={"help": "per word, with three different ones at least"})
    max_notices: float = field(default=0.015, metadata={"help": "per word: cookies, accounts, rights; three at least"})
    max_placeholder: float = field(default=0.2, metadata={"help": "share of words from lorem ipsum"})


class SpamFilter(BaseFilter):
    """Drop documents by the rates of what advertisements, link farms and pages' machinery are made of."""

    name = "spam"

    def __init__(self, settings: Spam):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        counts = word_counts(doc.text)
        fault = self._phrases(doc.text.lower(), counts) or self._words(counts)
        if fault is None:
            return True
        reason, doc.metadata["because"] = fault
        return False, reason

    def _phrases(self, lower: str, counts: Counter) -> tuple[str, str] | None:
        limit, size = self.settings, counts.total()
        for reason, phrases, most, least, different in (
            ("link_farm", _LINKS, limit.max_links_per_word, 5, 1),
            ("advertisement", _possible(SALES, counts), limit.max_sales_phrases, 3, 3),
            ("notice", _possible(NOTICES, counts), limit.max_notices, 3, 2),
        ):
            present = [phrase for phrase in phrases if phrase in lower]
            if len(present) < different:
                continue
            total = sum(map(lower.count, present))
            if total >= least and total > most * size:
                return reason, f"{total} in {size} words (such as {present[0]!r}), at most {most} per word"
        return None

    def _words(self, counts: Counter) -> tuple[str, str] | None:
        limit, size = self.settings, counts.total()
        if "ipsum" in counts:
            share = sum(counts[word] for word in PLACEHOLDER) / size
            if share > limit.max_placeholder:
                return "placeholder_text", f"{share:.0%} of the words are placeholders"
        size = sum(count for word, count in counts.items() if word[0].isalnum())
        for word, count in counts.most_common(10):
            if count < 8 or count <= limit.max_keyword * size:
                return None
            if len(word) >= _SHORTEST_KEYWORD and word.isalpha() and word not in _FREQUENT:
                return "keyword_stuffing", f"{word!r} is {count} of {size} words"
        return None


def _possible(phrases: tuple[str, ...], counts: Counter) -> list[str]:
    """The phrases whose longest word is in the text: to look for all of them takes ten times as long."""
    return [phrase for phrase, word in _longest_words(phrases) if word in counts]


@cache
def _longest_words(phrases: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(phrase, max(_LETTERS.findall(phrase), key=len)) for phrase in phrases]
