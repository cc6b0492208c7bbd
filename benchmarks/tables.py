"""Tables and charts of figures, as text and as one picture.

In: a title, a note, rows of short texts. Out: lines for the terminal, a page for a .png, drawn with minitl's own sheet.
"""

import sys
from dataclasses import dataclass, field

from minitl.drawing import CHART, GREY, INK, MARGIN, RULE, WIDTH, Page, draw_chart, measure

SIZE, LINE = 14, 21


@dataclass
class Table:
    """rows: of as many texts as the header has; a row of one text is a heading within the table. charts: drawn below, two in a row."""

    title: str
    note: str
    header: tuple
    rows: list = field(default_factory=list)
    charts: list = field(default_factory=list)

    def add(self, *row):
        self.rows.append(tuple(map(str, row)))

    def heading(self, text):
        """What the next rows are about; also said at once, since measuring takes a while."""
        self.rows.append((text,))
        print(f"  {text} ...", file=sys.stderr, flush=True)

    def remark(self, sentence):
        """Add to the note, once."""
        if sentence not in self.note:
            self.note += f" {sentence}"

    def columns(self):
        """The texts of each column, header included."""
        return list(zip(self.header, *(row for row in self.rows if len(row) > 1), strict=True))

    def text(self):
        """The table as lines: the first column to the left, figures to the right."""
        widths = [max(map(len, column)) for column in self.columns()]
        lines = ["", self.title, self.note]
        for row in [self.header, *self.rows]:
            if len(row) == 1:
                lines += ["", row[0]]
            else:
                cells = [
                    cell.ljust(width) if k == 0 else cell.rjust(width) for k, (cell, width) in enumerate(zip(row, widths, strict=True))
                ]
                lines.append("  " + "  ".join(cells).rstrip())
        return "\n".join(lines)

    def draw(self, page):
        """Add the table to a page."""
        page.heading(self.title)
        page.paragraph(self.note, GREY)
        page.y += 6
        widths = [max(measure(text, SIZE) for text in column) for column in self.columns()]
        gap = (WIDTH - 2 * MARGIN - sum(widths)) / max(len(widths) - 1, 1)
        for row in [self.header, *self.rows]:
            page.room(2 * LINE)
            if len(row) == 1:
                page.y += 8
                page.text(MARGIN, page.y, row[0], SIZE + 2)
                page.y += LINE + 2
                page.line([(MARGIN, page.y), (WIDTH - MARGIN, page.y)], RULE)
                page.y += 4
                continue
            right = MARGIN - gap
            for k, (cell, width) in enumerate(zip(row, widths, strict=True)):
                right += gap + width
                page.text(right if k else MARGIN, page.y, cell, SIZE, GREY if row is self.header else INK, "ra" if k else "la")
            page.y += LINE
        width = (WIDTH - 2 * MARGIN - 40) / 2
        for k, chart in enumerate(self.charts):
            if k % 2 == 0:
                page.y += 24
                page.room(CHART)
            draw_chart(page, chart, MARGIN + (k % 2) * (width + 40), page.y, width)
            if k % 2 or k == len(self.charts) - 1:
                page.y += CHART


def write(tables, about, path):
    """path.txt and path.png."""
    path.with_suffix(".txt").write_text("\n".join([about, *(table.text() for table in tables)]) + "\n", encoding="utf-8")
    page = Page()
    page.text(MARGIN, page.y, "minitl and its peers", 28)
    page.y += 44
    page.paragraph(about, GREY)
    for table in tables:
        table.draw(page)
    page.finished().save(path.with_suffix(".png"))


def number(value):
    """Three digits that count: 0.241, 2.41, 24.1, 241; '' for what was not measured."""
    if value != value:
        return ""
    return (
        f"{value:,.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}" if value >= 0.9995 else f"{value:.3f}"
    )
