"""Markdown, rendered by another library: it shows the text of the data, and none of the text becomes markup."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from mt.report.markdown import as_code, as_text, code_cell
from mt.report.text import harmless
from tests.test_page import PageReader

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


def rendered(markdown: str) -> PageReader:
    return PageReader(RENDERER.render(markdown))


def tags_of(page: PageReader) -> set[str]:
    return {tag for tag, _ in page.tags}


def one_line(text: str) -> str:
    """Return the text that a reader should see: one line, with names for characters that cannot be shown."""
    return " ".join(harmless(text).split())


@pytest.mark.parametrize("text", HOSTILE)
def test_a_table_cell_shows_text_from_the_data_and_never_as_markup(text: str):
    found = rendered(f"| Text | Code |\n| --- | --- |\n| {as_text(text)} | {code_cell(text)} |\n| a | b |")
    assert found.rows == [["Text", "Code"], [one_line(text), one_line(text)], ["a", "b"]]
    assert tags_of(found) - {"code"} == TABLE_TAGS


@pytest.mark.parametrize("text", HOSTILE)
def test_paragraphs_headings_and_code_show_text_from_the_data(text: str):
    markdown = f"{as_text(text)}\n\n## {as_text(text)} x\n\nBy {as_code(text)}.\n\n{as_text(text)}: better.\n"
    found = rendered(markdown)
    assert tags_of(found) <= {"p", "h2", "code"}
    expected = [one_line(text), f"{one_line(text)} x".strip(), f"By {one_line(text)}.", f"{one_line(text)}: better."]
    assert [line for line in "".join(found.texts).split("\n") if line] == [line for line in expected if line]


@settings(max_examples=70)
@given(TEXTS, TEXTS, TEXTS)
def test_any_text_stays_in_its_table_cell(first: str, second: str, third: str):
    cells = [as_text(first), code_cell(second), as_text(third)]
    found = rendered(f"| Text | Code | Text |\n| --- | --- | --- |\n| {' | '.join(cells)} |")
    assert found.rows == [["Text", "Code", "Text"], [one_line(first), one_line(second), one_line(third)]]
    assert tags_of(found) - {"code"} == TABLE_TAGS


@settings(max_examples=150)
@given(TEXTS)
def test_any_text_gives_exactly_one_paragraph(text: str):
    assert [tag for tag, _ in rendered(as_text(text)).tags] == (["p"] if one_line(text) else [])


def test_text_without_special_characters_is_unchanged():
    text = "Er sagte: „Das kostet 3.5 Millionen (2 % mehr)“ - nicht wahr? Ja!"
    assert as_text(text) == text
    assert as_code(text) == f"`{text}`"
    assert as_text("In 1. Reihe") == "In 1. Reihe"


def test_long_text_is_cut_off():
    assert as_text("|" * 201) == "&#124;" * 200 + "…"
    assert as_text("x" * 200) == "x" * 200


def test_text_becomes_neither_links_nor_formulas_on_github():
    # GitHub turns text that begins with https:// or www into links. An entity prevents this.
    assert as_text("https://a.org www.a.org $x^2$") == "https:&#47;/a.org www&#46;a.org &#36;x^2&#36;"


def test_code_outside_a_table_has_no_escape_characters():
    assert as_code("a | b") == "`a | b`"
    assert code_cell("a | b") == "`a \\| b`"
    assert as_code("`a``") == "``` `a`` ```"
    assert as_code("") == ""
