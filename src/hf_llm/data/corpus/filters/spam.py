"""Drop texts written for search engines or by a page's machinery: advertisements, link farms, notices, placeholders."""

import re
from collections import Counter
from dataclasses import dataclass
from functools import cache

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.word_tokenizer import count_words

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
MIN_KEYWORD_LETTERS = 4  # shorter words are mostly the grammar of a language
MIN_KEYWORD_COUNT = 8
MOST_COMMON_WORDS = 10  # of a text, looked at for keywords
_FREQUENT_LIST = """
that this with from have they will your their which when were been would there what about more some them than then
these those into only over such also after other could very here upon said where while most because does each even
much many like just should through must being between before under well same both
"""
_FREQUENT = frozenset(_FREQUENT_LIST.split())


@dataclass
class Spam(FilterSettings):
    """`spam` of the rules."""

    max_links_per_word: float = 0.08
    """The most links per word; fewer than five links are never too many."""

    max_keyword: float = 0.1
    """The largest share of words that are the same noun."""

    max_sales_phrases: float = 0.015
    """The most sales phrases per word; a text has to have three different ones at least."""

    max_notices: float = 0.015
    """The most phrases about cookies, accounts and rights per word; fewer than three are never too many."""

    max_placeholder: float = 0.2
    """The largest share of words from lorem ipsum."""

    def make_filter(self) -> "SpamFilter":
        return SpamFilter(self)


class SpamFilter(Filter):
    """Drop documents by the rates of what advertisements, link farms and pages' machinery are made of."""

    name = "spam"

    def filter(self, document: Document) -> Verdict:
        counts = count_words(document.text)
        return self._check_phrases(document.text.lower(), counts) or self._check_words(counts) or KEPT

    def _check_phrases(self, lower: str, counts: Counter) -> Verdict | None:
        """Judge how many links, sales phrases and notices there are per word. `lower` is the text in small letters."""
        settings = self.settings
        word_count = counts.total()
        # reason, phrases, the most per word, the fewest occurrences and the fewest different phrases that are judged
        for reason, phrases, max_per_word, min_occurrences, min_different in (
            ("link_farm", _LINKS, settings.max_links_per_word, 5, 1),
            ("advertisement", _possible_phrases(SALES, counts), settings.max_sales_phrases, 3, 3),
            ("notice", _possible_phrases(NOTICES, counts), settings.max_notices, 3, 2),
        ):
            present = [phrase for phrase in phrases if phrase in lower]
            if len(present) < min_different:
                continue
            occurrences = sum(map(lower.count, present))
            if occurrences >= min_occurrences and occurrences > max_per_word * word_count:
                detail = (
                    f"{occurrences} in {word_count} words (such as {present[0]!r}), at most {max_per_word} per word"
                )
                return Verdict(reason, detail)
        return None

    def _check_words(self, counts: Counter) -> Verdict | None:
        """Judge the share of placeholder words, and of the most frequent noun."""
        settings = self.settings
        if "ipsum" in counts:
            share = sum(counts[word] for word in PLACEHOLDER) / counts.total()
            if share > settings.max_placeholder:
                return Verdict("placeholder_text", f"{share:.0%} of the words are placeholders")

        word_count = sum(count for word, count in counts.items() if word[0].isalnum())
        max_count = settings.max_keyword * word_count
        for word, count in counts.most_common(MOST_COMMON_WORDS):
            if count < MIN_KEYWORD_COUNT or count <= max_count:
                return None  # the words that follow are rarer still
            is_noun = len(word) >= MIN_KEYWORD_LETTERS and word.isalpha() and word not in _FREQUENT
            if is_noun:
                return Verdict("keyword_stuffing", f"{word!r} is {count} of {word_count} words")
        return None


def _possible_phrases(phrases: tuple[str, ...], counts: Counter) -> list[str]:
    """Return the phrases whose longest word is in the text: to search for all of them takes ten times as long."""
    return [phrase for phrase, word in _longest_words(phrases) if word in counts]


@cache
def _longest_words(phrases: tuple[str, ...]) -> list[tuple[str, str]]:
    """Pair each phrase with its longest word."""
    return [(phrase, max(_LETTERS.findall(phrase), key=len)) for phrase in phrases]
