"""Drop pornography and texts that are mostly abuse. One word decides nothing: medicine, news and novels pass."""

from collections import Counter
from dataclasses import dataclass

from hf_llm.data.corpus.filters.base import KEPT, Document, Filter, FilterSettings, Verdict
from hf_llm.data.corpus.filters.word_tokenizer import count_words

# A share of words is judged only where the text has this many listed words, and this many different ones.
MIN_LISTED_WORDS = 3
MIN_DIFFERENT_WORDS = 2

# Words that hardly occur outside of pornography. Anatomy, medicine, law and education have none of theirs here.
_EXPLICIT_LIST = """
porn porno porns pornhub pornstar pornstars xvideos xhamster xnxx redtube youporn xxx milf milfs gilf blowjob blowjobs
handjob handjobs rimjob footjob titjob boobjob cumshot cumshots cumming cums cumslut jizz bukkake creampie creampies
gangbang gangbangs gangbanged deepthroat deepthroating facefuck hentai camgirl camgirls camwhore upskirt cuckold
cuckolding bdsm dildo dildos buttplug fleshlight strapon squirting sexcam sexcams sexvideo sexfilme sexchat nympho
nymphomaniac threesome threesomes foursome masturbating wanking jerkoff titties clit cunnilingus fellatio analsex
assfuck shemale shemales slutty striptease lapdance ficken fickt fotze fotzen titten sexkontakte salope salopes polla
pollas follando mamada mamadas culona scopare pompino pompini troia troie buceta putaria boquete gozando neuken kutje
kurwy cipka jebanie порно трахает минет шлюха шлюхи
"""
EXPLICIT = frozenset(_EXPLICIT_LIST.split())
# Words with an innocent meaning beside the other: counted only in a text that has explicit ones too.
_AMBIGUOUS_LIST = """
boobs pussies pussy tits titty sex sexy sexual nude naked cock cocks dick dicks cum anal oral ass asses butt hardcore
amateur amateurs lesbian lesbians teen teens babe babes slut whore fuck fucks fucked fucking fucker suck sucks sucking
bondage fetish kinky erotic orgy orgasm swinger swingers webcam escort busty blonde hooker stripper strippers penis
vagina nipples thong lingerie
"""
AMBIGUOUS = frozenset(_AMBIGUOUS_LIST.split())
_PROFANE_LIST = """
fuck fucks fucked fucker fuckers fucking fuckin motherfucker motherfuckers motherfucking shit shits shitty bullshit
asshole assholes arsehole bitch bitches bitching bastard bastards cunt cunts twat twats wanker wankers prick pricks
dickhead dickheads dumbass jackass goddamn goddamned douchebag douchebags scumbag whore whores slut sluts faggot
faggots fag fags nigger niggers nigga niggas retard retards spic spics kike kikes chink chinks gook gooks wetback
wetbacks coon coons tranny trannies dyke dykes paki pakis raghead ragheads towelhead scheiße scheisse arschloch
hurensohn wichser fotze merde connard connards connasse enculé putain salope mierda cabrón gilipollas hijoputa pendejo
puta cazzo stronzo vaffanculo merda caralho porra kurwa chuj блять сука хуй пизда
"""
PROFANE = frozenset(_PROFANE_LIST.split())


@dataclass
class Adult(FilterSettings):
    """`adult` of the rules: shares of words. A text needs three listed words at least, and two different ones."""

    max_explicit: float = 0.01
    """The largest share of sexually explicit words that is kept."""

    max_profane: float = 0.03
    """The largest share of swear words and slurs that is kept."""

    def __post_init__(self) -> None:
        if not (0 <= self.max_explicit <= 1 and 0 <= self.max_profane <= 1):
            raise ValueError("max_explicit and max_profane are shares, 0 to 1")

    def make_filter(self) -> "AdultFilter":
        return AdultFilter(self)


class AdultFilter(Filter):
    """Drop documents by their share of explicit or profane words."""

    name = "adult"

    def filter(self, document: Document) -> Verdict:
        counts = count_words(document.text)
        # Nearly all texts have no listed word at all; to see that is much faster than to count.
        if counts.keys().isdisjoint(EXPLICIT) and counts.keys().isdisjoint(PROFANE):
            return KEPT

        word_count = counts.total()
        explicit = _count_explicit(counts)
        profane = _count_listed(counts, PROFANE)
        return (
            _judge_share("explicit", explicit, word_count, self.settings.max_explicit)
            or _judge_share("profane", profane, word_count, self.settings.max_profane)
            or KEPT
        )


def _judge_share(reason: str, listed: Counter, word_count: int, max_share: float) -> Verdict | None:
    """Drop a text whose listed words are more than `max_share` of its words; None where they are not."""
    listed_count = listed.total()
    is_enough = len(listed) >= MIN_DIFFERENT_WORDS and listed_count >= MIN_LISTED_WORDS
    if not is_enough or listed_count <= max_share * word_count:
        return None
    most_common = ", ".join(word for word, _ in listed.most_common(3))
    return Verdict(reason, f"{listed_count} of {word_count} words are {reason} (such as {most_common})")


def _count_listed(counts: Counter, listed: frozenset[str]) -> Counter:
    """Return the counts of those words that are listed, in alphabetical order."""
    return Counter({word: counts[word] for word in sorted(listed & counts.keys())})


def _count_explicit(counts: Counter) -> Counter:
    """Return the counts of explicit words, and of the ambiguous ones too if two different explicit ones are there."""
    explicit = _count_listed(counts, EXPLICIT)
    if len(explicit) < MIN_DIFFERENT_WORDS:
        return explicit
    return explicit + _count_listed(counts, AMBIGUOUS)
