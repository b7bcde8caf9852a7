"""A page of a report, read back."""

from html.parser import HTMLParser


class Reader(HTMLParser):
    """Collects rows of cells, headings, all text but styles, and every tag with its attributes."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.rows, self.headings, self.text, self._inside = [], [], [], "", ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self._inside = tag
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside in ("td", "th"):
            self.rows[-1][-1] += data
        if self._inside == "h2":
            self.headings.append(data)
        if self._inside != "style":
            self.text += data
