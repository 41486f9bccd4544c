"""Markdown as others render it: what is read there is the text of the data, and nothing of it is markup."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mt.report.markdown import as_code, as_text, code_cell
from mt.report.text import harmless

RENDERER = MarkdownIt("commonmark").enable("table")
TABLE_TAGS = {"table", "thead", "tbody", "tr", "th", "td"}
HOSTILE = [
    '<script>alert("x")</script>',
    "<img src=x onerror=alert(1)>",
    "<!-- nobody sees this -->",
    "$x^2$ and $$\\sqrt{x}$$",
    "a | b || c \\| d \\\\| e",
    "`code` ``more`` ```",
    "[link](https://example.org) ![image](x.png) [id]: /url",
    "<https://example.org> https://example.org www.example.org",
    "# heading #",
    "- a",
    "+ a",
    "* a *b* **c** _d_ __e__ ~~f~~",
    "1. a",
    "12) a",
    "=====",
    "---",
    "| --- | ---: |",
    "> quoted",
    "&amp; &lt;b&gt; &#65; &copy",
    "\\*not bold\\* \\",
    "    indented",
    '=HYPERLINK("x")',
    "שלום \u202eevil\x00 \ud800 a\u2028b\x85c\td\r\ne\x0bf",
    "",
]
TEXTS = st.one_of(
    st.text(max_size=60),
    st.text("ab1 \t\n|\\`*_[]()<>!#-+=.)~$&;:/\"'{}^@wx\ud800\x00\u202e\xa0", max_size=60),
    st.lists(st.sampled_from(HOSTILE), max_size=3).map("".join),
)


class Cells(HTMLParser):
    """The tags of rendered Markdown, and the text of each cell of its tables."""

    def __init__(self, markdown: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.rows: list[list[str]] = []
        self._is_inside = False
        self.feed(RENDERER.render(markdown))
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._is_inside = True

    def handle_endtag(self, tag: str) -> None:
        self._is_inside = self._is_inside and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._is_inside:
            self.rows[-1][-1] += data

    def handle_comment(self, data: str) -> None:
        self.tags.add("!--")

    def handle_decl(self, decl: str) -> None:
        self.tags.add("!")

    def handle_pi(self, data: str) -> None:
        self.tags.add("?")


def one_line(text: str) -> str:
    """What a reader should see: one line, with names in place of what cannot be shown."""
    return " ".join(harmless(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_cell_shows_the_text_of_the_data_and_nothing_of_it_is_markup(text: str):
    found = Cells(f"| Text | Code |\n| --- | --- |\n| {as_text(text)} | {code_cell(text)} |\n| a | b |")
    assert found.rows == [["Text", "Code"], [one_line(text), one_line(text)], ["a", "b"]]
    assert found.tags - {"code"} == TABLE_TAGS


@pytest.mark.parametrize("text", HOSTILE)
def test_a_paragraph_a_heading_and_code_show_the_text_of_the_data(text: str):
    markdown = f"{as_text(text)}\n\n## {as_text(text)} x\n\nBy {as_code(text)}.\n\n{as_text(text)}: better.\n"
    rendered = RENDERER.render(markdown)
    assert set(re.findall(r"<(\w+)", rendered)) <= {"p", "h2", "code"}
    found = Cells("")
    found.rows, found._is_inside = [[""]], True
    found.feed(rendered)
    found.close()
    expected = [one_line(text), f"{one_line(text)} x".strip(), f"By {one_line(text)}.", f"{one_line(text)}: better."]
    assert [line for line in found.rows[0][0].split("\n") if line] == [line for line in expected if line]


@settings(max_examples=70)
@given(TEXTS, TEXTS, TEXTS)
def test_whatever_the_text_is_it_stays_in_its_cell(first: str, second: str, third: str):
    cells = [as_text(first), code_cell(second), as_text(third)]
    found = Cells(f"| Text | Code | Text |\n| --- | --- | --- |\n| {' | '.join(cells)} |")
    assert found.rows == [["Text", "Code", "Text"], [one_line(first), one_line(second), one_line(third)]]
    assert found.tags - {"code"} == TABLE_TAGS


@settings(max_examples=150)
@given(TEXTS)
def test_whatever_the_text_is_a_paragraph_of_it_is_one(text: str):
    rendered = RENDERER.render(as_text(text))
    assert re.findall(r"<(\w+)", rendered) == (["p"] if one_line(text) else [])


def test_text_without_marks_stays_as_readable_as_it_is():
    text = "Er sagte: „Das kostet 3.5 Millionen (2 % mehr)“ - nicht wahr? Ja!"
    assert as_text(text) == text
    assert as_code(text) == f"`{text}`"
    assert as_text("In 1. Reihe") == "In 1. Reihe"


def test_of_a_long_text_the_beginning_is_shown():
    assert as_text("|" * 201) == "&#124;" * 200 + "…"
    assert as_text("x" * 200) == "x" * 200


def test_addresses_become_no_links():
    # GitHub makes links of what begins with https:// or www, and an entity prevents it.
    assert as_text("https://a.org www.a.org") == "https:&#47;/a.org www&#46;a.org"


def test_formulas_are_none():
    assert as_text("$x^2$") == "&#36;x^2&#36;"


def test_code_outside_of_a_table_has_no_signs_that_are_not_its_own():
    assert as_code("a | b") == "`a | b`"
    assert code_cell("a | b") == "`a \\| b`"
    assert as_code("`a``") == "``` `a`` ```"
    assert as_code("") == ""
