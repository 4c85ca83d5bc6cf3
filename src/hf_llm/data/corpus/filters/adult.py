"""Drop pornography and texts that are mostly abuse. One word decides nothing: medicine, news and novels pass."""

from collections import Counter
from dataclasses import dataclass, field

from datatrove.data import Document
from datatrove.pipeline.filters.base_filter import BaseFilter

from hf_llm.data.corpus.word_tokenizer import word_counts

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
class Adult:
    """`adult` of the rules: shares of words. Both need three such words at least, and two different ones."""

    max_explicit: float = field(default=0.01, metadata={"help": "largest share of sexually explicit words"})
    max_profane: float = field(default=0.03, metadata={"help": "largest share of swear words and slurs"})

    def __post_init__(self) -> None:
        if not (0 <= self.max_explicit <= 1 and 0 <= self.max_profane <= 1):
            raise ValueError("max_explicit and max_profane are shares, 0 to 1")


class AdultFilter(BaseFilter):
    """Drop documents by their share of explicit or profane words."""

    name = "adult"

    def __init__(self, settings: Adult):
        super().__init__()
        self.settings = settings

    def filter(self, doc: Document) -> bool | tuple[bool, str]:
        counts = word_counts(doc.text)
        if not (counts.keys().isdisjoint(EXPLICIT) and counts.keys().isdisjoint(PROFANE)):
            total = counts.total()
            for reason, limit, hits in (
                ("explicit", self.settings.max_explicit, _explicit(counts)),
                ("profane", self.settings.max_profane, _among(counts, PROFANE)),
            ):
                if len(hits) >= 2 and hits.total() >= 3 and hits.total() > limit * total:
                    most = ", ".join(word for word, _ in hits.most_common(3))
                    doc.metadata["because"] = f"{hits.total()} of {total} words are {reason} (such as {most})"
                    return False, reason
        return True


def _among(counts: Counter, listed: frozenset[str]) -> Counter:
    return Counter({word: counts[word] for word in sorted(listed & counts.keys())})


def _explicit(counts: Counter) -> Counter:
    """Explicit words, and in a text that has two different ones the ambiguous words too."""
    hits = _among(counts, EXPLICIT)
    return hits + _among(counts, AMBIGUOUS) if len(hits) >= 2 else hits
