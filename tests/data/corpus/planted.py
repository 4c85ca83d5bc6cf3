"""Good documents, and the same kinds of documents with one planted fault each, for the rules' precision and recall.

The good ones are the topics of Python's language reference (PSF-2.0) that are prose, and paragraphs written here about
what rules are easily wrong about: medicine, fiction, place names, prices, versions.
"""

import pydoc_data.topics
import re
from functools import cache
from itertools import cycle, islice

DELICATE = (
    "The clinic in Scunthorpe advises patients with breast cancer on surgery and on life after it. A mastectomy "
    "removes the breast, and sometimes the lymph nodes of the armpit; sexual health and contraception are "
    "discussed openly. The doctors examine the penis, the vagina and the anus where symptoms ask for it, and they "
    "explain what a smear test is for. Anal fissures heal by themselves in most cases. Oral medicine is given "
    "twice a day, and bowel cancer is found early when people have the courage to talk to their general "
    "practitioner about it.",
    "Dick pulled his cap down and said nothing. The cock crowed twice behind the barn, and old Mrs. Cockburn of "
    "Penistone came out with a pail in each hand, calling the hens. He had been a bastard to her, he thought, and "
    "a damned fool to himself. She set the pails down. Then she told him, in a voice as level as the moor, that "
    "the bitch had whelped in the night and that there were six of them, all alive, and that he might have one if "
    "he behaved. He laughed at that.",
    "In Essex and Sussex the tits return to the feeders when the first frost is on the ground. Great tits and blue "
    "tits are bold; the long-tailed tit comes in flocks and leaves again before anyone has counted them. A garden "
    "that is left a little wild has more insects, and with them more birds, than one that is mown every week. The "
    "shag and the booby are birds of the sea and are not to be expected inland, whatever the guide from the "
    "village shop may promise you.",
    "The privacy policy of the company was the subject of the first hearing. Members of the committee asked how it "
    "uses cookies, for how long it stores what it learns, and whether a person can have it deleted. The witness "
    "answered that the law of 2018 was followed in every country. A second question was about advertising to "
    "children. Nobody at the company, he said, had been asked to work on that since the spring, and nobody would "
    "be asked to in the future.",
    "Version 3.11.2.1 of the firmware was released on 2023-04-17 and costs $1,299.00 in the shops. It replaces "
    "release 3.10.14.2, which dates from 12.05.2021. The manual, ISBN 978-0-306-40615-7, has 1,024 pages and "
    "describes the years from 1914 - 1918 in its appendix. Devices at 192.168.0.1 and 10.0.0.17 answer within 12.5 "
    "ms. The decorator @app.get is explained in section 4.2.1.7, and the address user@example.com in it stands for "
    "your own. It sold 1 250 000 times in the first year, and nobody in the company could say who had bought all of "
    "them or why.",
)
_SEX = "horny milf gives blowjob and takes a cumshot on her tits while the gangbang porn video goes on for free here"
_ABUSE = "you fucking bastard, shut the fuck up, you stupid piece of shit, you asshole, what a fucking bitch you are"
FOREIGN = {
    "de": "Der Rat hat am Dienstag beschlossen, die Brücke über den Fluss noch in diesem Jahr zu erneuern. Die "
    "Kosten werden auf zwölf Millionen Euro geschätzt, und der Verkehr soll während der Arbeiten umgeleitet "
    "werden. ",
    "fr": "Le conseil a décidé mardi de rénover le pont sur la rivière avant la fin de l'année. Le coût des "
    "travaux est estimé à douze millions d'euros, et la circulation sera déviée pendant toute la durée du "
    "chantier. ",
    "es": "El consejo decidió el martes renovar el puente sobre el río antes de que termine el año. El coste de "
    "las obras se calcula en doce millones de euros, y el tráfico será desviado mientras duren los trabajos. ",
    "ru": "Во вторник совет решил обновить мост через реку ещё в этом году. Стоимость работ оценивается в "
    "двенадцать миллионов евро, и движение на время строительства будет направлено в объезд. ",
    "zh": "市议会周二决定在今年年底之前翻修河上的桥梁。工程费用估计为一千二百万欧元,施工期间交通将改道。",
}
SPAM = {
    "advertisement": "Buy now and get free shipping! Best price guaranteed, limited time special offer, order now "
    "with our promo code. Click here for the lowest price on replica watches, no prescription needed, money back "
    "guarantee. ",
    "keyword_stuffing": "cheap insurance quotes insurance online insurance agents best insurance car insurance "
    "companies home insurance rates insurance broker life insurance deals insurance city insurance ",
    "link_farm": "great page http://links.example/a1 more http://links.example/b2 and www.pages.example/c3 see ",
    "notice": "We use cookies to improve your visit. Accept all cookies or manage cookies in your browser. Please "
    "enable JavaScript to view this page. Privacy policy. Terms of service. All rights reserved. Skip to content. ",
    "placeholder_text": "Lorem ipsum dolor sit amet, consectetur adipiscing elit, sed do eiusmod tempor incididunt "
    "ut labore et dolore magna aliqua. Ut enim ad minim veniam, quis nostrud exercitation ullamco laboris nisi ut "
    "aliquip. ",
}
# kind: what has to go, and texts in which it does.
PERSONAL = {
    "email": [
        "jane.doe+news@mail.acme-widgets.co.uk", "j_smith99@gmail.com", "anna (at) posteo (dot) de",
        "Bob.O'Hara@uni.edu",
    ],
    "ip": ["8.8.8.8", "203.0.112.77", "151.101.1.69", "2606:4700:4700::1111"],
    "phone": [
        "+1 415-555-2671", "+44 20 7946 0958", "(415) 555-2671", "415-555-2671", "415.555.2671", "+49 89 636 48018",
        "+33 1 42 68 53 00",
    ],
    "card": ["4111 1111 1111 1111", "5500-0000-0000-0004", "378282246310005"],
    "iban": ["DE89 3704 0044 0532 0130 00", "GB82 WEST 1234 5698 7654 32", "FR1420041010050500013M02606"],
}  # fmt: skip
# What looks like it and has to stay.
IMPERSONAL = [
    "2023-04-17", "17.04.2023", "04/17/2023", "1914-1918", "1914 - 1918", "$1,299.00", "1 250 000", "10,000,000",
    "ISBN 978-0-306-40615-7", "ISBN-10: 0-306-40615-2", "version 1.2.3.4", "v8.8.4.1", "192.168.0.1", "127.0.0.1",
    "10.0.0.17", "@app.route", "git@github.com:org/repo.git", "user@example.com", "3.14159265358979", "12:30:45",
    "2023-04-17T12:30:45", "0x7fff5fbff8a0", "1234567890", "x[10:20:30]", "std::vector", "RFC 2606", "100-200-300",
    "1,234,567.89", "4111 1111 1111 1112", "section 4.2.1.7", "192.168.0.1:8080", "pages 1024-1066", "5-10-15-20",
]  # fmt: skip
_SIGNS = re.compile(r"[^\w\s,.’-]|_")


@cache
def good() -> list[str]:
    """Documents of English prose that every rule has to let through."""
    texts = [re.sub(r"(?m)^( {3}|\*+$|=+$|-+$)", "", text) for text in pydoc_data.topics.topics.values()]
    prose = list(dict.fromkeys(paragraph for text in texts for paragraph in _prose(text)))
    return [*DELICATE, *(" ".join(prose[i : i + 3]) for i in range(0, len(prose) - 2, 3))]


def _prose(text: str) -> list[str]:
    """The paragraphs that are sentences: no grammar, no program, no table."""
    joined = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [p for p in joined if len(p) > 250 and p.endswith(".") and len(_SIGNS.findall(p)) < 0.02 * len(p)]


def faulty() -> dict[str, list[str]]:
    """Kind of fault to documents that have it."""
    carriers = good()[5:25]
    cut = [text[:200] for text in carriers]
    return {
        "repeated_line": [f"{text}\n" + f"{text[:60]}.\n" * 25 for text in cut],
        "repeated_phrase": [f"{text[:120]} {' '.join(text.split()[:6] * 40)}." for text in cut],
        "too_short": [" ".join(text.split()[:20]) for text in carriers],
        "symbols": [
            " ".join(f"{word} #" if i % 3 == 0 else word for i, word in enumerate(t.split())) for t in carriers
        ],
        "bullets": ["\n".join(f"- {line}" for line in _lines(text)) for text in carriers],
        "ellipses": ["\n".join(f"{line} ..." for line in _lines(text)) for text in carriers],
        "figures": [" ".join(f"{word} {i * 37}" for i, word in enumerate(text.split())) for text in carriers],
        "menu": ["\n".join(word.title() for word in text.split()) for text in carriers],
        "program": [f"{text}\nfunction f() {{ return 1; }}." for text in carriers],
        "language": [text * 4 for text in FOREIGN.values()],
        "explicit": [f"{text} {_SEX}" for text in cut],
        "profane": [f"{text} {_ABUSE}" for text in cut],
        **{kind: [f"{text[:100]} {phrase * 3}" for text in cut] for kind, phrase in SPAM.items()},
    }


def _lines(text: str) -> list[str]:
    return re.findall(r"\S.{40,60}(?=\s)", text)


def personal() -> list[tuple[str, str, str]]:
    """Kind, what has to go, and a text around it: every value in three sentences."""
    frames = ("Write to {} before Friday.", "It was {}, as the report says.", "Contact: {}\nOpen from nine to five.")
    found = [
        (kind, value, frame.format(value)) for kind, some in PERSONAL.items() for value in some for frame in frames
    ]
    announced = ("Tel. {} is manned at night.", "Please call us at {}.", "Fax: {}\n", "WhatsApp {}, any time.")
    return found + [
        ("phone", value, each.format(value)) for value in ("4155552671", "415 555 2671") for each in announced
    ]


def impersonal() -> list[str]:
    """Texts from which nothing may go."""
    frames = cycle(("It was {}, as the report says.", "See {} for more.", "Value: {}\nNext."))
    return [frame.format(value) for value in IMPERSONAL for frame in islice(frames, 3)]
