"""What an HTML page holds: shared by the tests of the pages."""

from html.parser import HTMLParser

VOID = {"meta", "br", "link", "input", "img"}


class Structure(HTMLParser):
    """Collects text, tags and addresses, and checks that every element is closed in order."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.text, self.tags, self.addresses = [], "", [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [value for name, value in attributes if name in ("src", "href", "action", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += " " + data
