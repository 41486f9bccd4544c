"""Building blocks of pages: numbers, text, differences, tables and charts; and rules for every page."""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from html.parser import HTMLParser
from importlib.resources import files

import pytest

from mt.report.charts import Series, histograms, line_chart, stacked_bars
from mt.report.page import Number, Text, page, setting_value, table
from mt.report.text import character_differences, truncated, visible, word_differences

HOSTILE = '<script>alert("x")</script> &amp; \'=HYPERLINK("a")\' שלום \u202eevil\x00\ud800'


class PageReader(HTMLParser):
    """A parser that collects the content of a page as a browser sees it. It fails if tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.rows: list[list[str]] = []  # of all tables
        self.headings: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"<{tag}> has an attribute twice"
        self.tags.append((tag, attributes))
        if tag != "meta":
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if {"td", "th"} & {*self.open}:
            self.rows[-1][-1] += data
        elif "h2" in self.open:
            self.headings[-1] += data

    def handle_comment(self, data: str) -> None:
        self.tags.append(("!--", {}))

    def handle_pi(self, data: str) -> None:
        self.tags.append(("?", {}))

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())


def assert_same_structure(hostile: str, words: str, in_order: bool = True) -> None:
    """Require that a page with hostile text has the same elements, attributes and script as one with harmless words.

    Args:
        in_order: the pages differ only in their text, so that their elements have the same order, too.
    """
    assert not re.search("[\x00-\x08\x0e-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]", hostile)
    found, expected = PageReader(hostile), PageReader(words)
    # Spans with titles also stand for hidden characters.
    tags = [[tag for tag, _ in one.tags if tag not in ("span", "mark", "del", "ins")] for one in (found, expected)]
    assert {*tags[0]} == {*tags[1]}
    assert tags[0] == tags[1] or not in_order
    assert tags[0].count("script") <= 1
    names = [{name for _, attributes in one.tags for name in attributes} for one in (found, expected)]
    assert names[0] - {"title"} == names[1] - {"title"}
    for tag in ("script", "style"):
        inside = [re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL) for text in (hostile, words)]
        assert inside[0] == inside[1]


def shown(part: str) -> str:
    """Return the text of a part of a page, without tags."""
    return html.unescape(re.sub("<[^>]*>", "", part))


def _page_with_table(n_rows: int) -> str:
    none = {"tgt_pieces": [], "src_pieces": [], "maps": [], "n_heads": 1}
    return page("attention.html.j2", "t", tgt=table(["x"], [["1"]] * n_rows, sortable=True), **none)


def test_a_page_loads_nothing_and_runs_only_its_own_script():
    script = files("mt.report").joinpath("templates/script.js").read_text("utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = _page_with_table(2)
    assert re.findall("<script>(.*?)</script>", text, re.DOTALL) == [script]
    assert "<script" not in _page_with_table(1)  # there is nothing to sort
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'"
    assert policy in text
    assert "://" not in text
    assert not re.search(r"\b(?:src|href)=\"[^#]|@import|url\(", text)


@pytest.mark.parametrize(
    ("number", "text", "value"),
    [
        (Number(1_234_567), "1,234,567", "1234567"),
        (Number(1_234.5678), "1,234.57", "1234.5678"),
        (Number(2.0, digits=0), "2", "2.0"),
        (Number(0.85, "fraction"), "85.0%", "0.85"),
        (Number(0.00001, "fraction"), "<0.1%", "1e-05"),
        (Number(0.99999, "fraction"), ">99.9%", "0.99999"),
        (Number(0.99999, "fraction", 3), "99.999%", "0.99999"),
        (Number(0, "fraction"), "0%", "0"),
        (Number(1.0, "fraction"), "100%", "1.0"),
        (Number(3.14159, "seconds"), "3.14 s", "3.14159"),
        (Number(59.96, "seconds"), "60.0 s", "59.96"),
        (Number(119.7, "seconds"), "2 min 00 s", "119.7"),
        (Number(7_325.0, "seconds"), "2 h 02 min", "7325.0"),
        (Number(843_210_752, "bytes"), "804.1 MiB", "843210752"),
        (Number(512, "bytes"), "512 bytes", "512"),
        (Number(None), "–", "null"),
        (Number(math.nan, "fraction"), "–", "null"),
        (Number(-math.inf, "seconds"), "–", "null"),
    ],
)
def test_numbers_are_shown_rounded_but_sorted_by_exact_value(number: Number, text: str, value: str):
    assert str(number) == text
    assert f'<td class="n" data-value="{value}">{html.escape(text)}</td>' in table(["a", "b"], [["a", number]])


def test_settings_are_shown_with_all_digits():
    values = [0.9999, 1e-7, 4_000, True, None, ["<bt>"], "words"]
    expected = ["0.9999", "0.0000001", "4,000", "true", "null", '["<bt>"]', "words"]
    assert [shown(setting_value(value)) for value in values] == expected
    assert setting_value(2**30, "memory_bytes") == "1.0 GiB"


def test_a_table_has_row_and_column_headers_and_its_total_is_not_sorted():
    text = table(["name", "text", "n"], [["a", Text("שלום", "he"), 1_000], ["b", "x" * 21, 1]], ["all", "", 2])
    assert re.findall("<th .*?</th>|<td.*?</td>", text) == [
        '<th scope="col">name</th>',
        '<th scope="col">text</th>',
        '<th scope="col" class="n">n</th>',
        '<th scope="row" dir="auto">a</th>',
        '<td lang="he" dir="auto" class="text">שלום</td>',
        '<td class="n" data-value="1000">1,000</td>',
        '<th scope="row" dir="auto">b</th>',
        f'<td class="text" dir="auto">{"x" * 21}</td>',
        '<td class="n" data-value="1">1</td>',
        '<th scope="row" dir="auto">all</th>',
        '<td dir="auto"></td>',
        '<td class="n" data-value="2">2</td>',
    ]
    assert text.index("<tfoot>") > text.index("</tbody>")


def test_hidden_characters_are_shown():
    assert shown(visible(" a  b\tc\xa0d\u200be\u202e ")) == "·a··b⇥c⍽dU+200BeU+202E·"
    assert 'title="U+00A0 NO-BREAK SPACE"' in visible("\xa0")
    assert 'title="U+0009 TAB"' in visible("\t")
    # Persian spelling and emoji need these characters.
    assert visible("می\u200cخواهم 👩\u200d🔬 a b") == "می\u200cخواهم 👩\u200d🔬 a b"


def test_cut_off_text_says_how_much_is_missing():
    assert shown(truncated("x" * 1_500)) == "x" * 1_000 + " … 500 more characters"
    assert truncated("x" * 1_000) == "x" * 1_000


@pytest.mark.parametrize(
    ("before", "after", "marked", "described"),
    [
        ("a  b c", "a b c", ("a<del>·</del> b c", "a b c"), "U+0020 SPACE → nothing"),
        (
            "Mu\u0308he",
            "Mühe",
            ("M<del>u\u0308</del>he", "M<ins>ü</ins>he"),
            "U+0075 LATIN SMALL LETTER U + U+0308 COMBINING DIAERESIS → U+00FC LATIN SMALL LETTER U WITH DIAERESIS",
        ),
        (
            "5\xa0€ <b>",
            "5 € <b>",
            ("5<del>⍽</del>€ <b>", "5<ins>·</ins>€ <b>"),
            "U+00A0 NO-BREAK SPACE → U+0020 SPACE",
        ),
        ("same", "same", ("same", "same"), ""),
    ],
)
def test_different_characters_are_marked_and_named(before: str, after: str, marked: tuple[str, str], described: str):
    old, new, names = character_differences(before, after)
    assert tuple(html.unescape(re.sub("</?span[^>]*>", "", part)) for part in (old, new)) == marked
    assert names == described


def test_long_texts_are_shown_around_the_first_difference():
    old, new, names = character_differences("x" * 5_000 + "a" + "y" * 5_000, "x" * 5_000 + "b" + "y" * 5_000)
    assert shown(old) == "…" + "x" * 100 + "a" + "y" * 898 + " … 4,102 more characters"
    assert shown(new) == shown(old).replace("a" + "y", "b" + "y")
    assert names == "U+0061 LATIN SMALL LETTER A → U+0062 LATIN SMALL LETTER B"

    old, new, _ = character_differences("x" * 5_000 + "  ", "x" * 5_000)
    assert (shown(old), shown(new)) == ("…" + "x" * 100 + "··", "…" + "x" * 100)


@pytest.mark.parametrize(
    ("one", "other", "marked"),
    [
        # The space between two marked words is marked, but not the spaces around them.
        ("a b c d", "a x d", ("a <mark>b c</mark> d", "a <mark>x</mark> d")),
        ("Er kam.", "Er ging!", ("Er <mark>kam.</mark>", "Er <mark>ging!</mark>")),
        ("", "a <b>", ("", "<mark>a &lt;b&gt;</mark>")),
        ("same", "same", ("same", "same")),
        ("a  b", "a b", ("a··b", "a b")),  # no word differs
        # Marks that are not letters belong to the word that they are in.
        ("हिन्दी भाषा", "हिन्दू भाषा", ("<mark>हिन्दी</mark> भाषा", "<mark>हिन्दू</mark> भाषा")),
        ("cafe\u0301s", "cafes", ("<mark>cafe\u0301s</mark>", "<mark>cafes</mark>")),
    ],
)
def test_words_missing_from_the_other_text_are_marked(one: str, other: str, marked: tuple[str, str]):
    parts = word_differences(one, other)
    assert tuple(re.sub("</?span[^>]*>", "", part) for part in parts) == marked


def test_only_the_beginning_of_long_texts_is_compared_by_words():
    one, other = word_differences("word " * 300, "word " * 200 + "end " * 100)
    assert shown(one).endswith("word word  … 500 more characters")
    assert "<mark>" not in one + other  # the difference is not in the part that is shown


def test_repetitive_texts_are_not_aligned():
    """Aligning them takes seconds each."""
    one, other = word_differences("So " + "!" * 900 + " ja", "So " + "!?" * 450 + " ja")
    # Only the common beginning and the common end are recognised.
    assert one == f"So !<mark>{'!' * 899}</mark> ja"
    assert other == f"So !<mark>{'?!' * 449}?</mark> ja"
    assert character_differences("!" * 1_000, "!?" * 500)[0] == f"!<del>{'!' * 999}</del>"


def test_histograms_side_by_side_have_the_same_scale():
    high, low = histograms({"high": [10, 20, 5], "low": [0, 10, 0, 0]}, "tokens", "pairs")
    assert re.findall(r'<rect .*?height="([\d.]+)"', high) == ["90.00", "180.00", "45.00"]
    assert re.findall(r'<rect .*?height="([\d.]+)"', low) == ["90.00"]
    assert re.findall("<title>(.*?)</title>", high) == ["1 tokens: 10 pairs", "2 tokens: 20 pairs", "3 tokens: 5 pairs"]
    assert PageReader(high).rows == [["tokens", "pairs"], ["1", "10"], ["2", "20"], ["3", "5"]]
    assert 'aria-label="Histogram: low. 3 bars; the highest is 2 tokens: 10 pairs. All numbers' in low


def test_a_histogram_with_many_counts_groups_them_in_bars_and_lists_all():
    (part,) = histograms({"h": [2] * 198}, "tokens", "pairs")
    titles = re.findall("<title>(.*?)</title>", part)
    assert (len(titles), titles[0], titles[-1]) == (50, "1–4 tokens: 8 pairs", "197–198 tokens: 4 pairs")
    assert PageReader(part).rows == [["tokens", "pairs"], *([str(i), "2"] for i in range(1, 199))]
    # Ticks are under the middle of the bins of 50, 100 and 150.
    ticks = re.findall(r'<text x="([\d.]+)%" y="198" text-anchor="middle">(\d+)<', part)
    assert ticks == [("24.750", "50"), ("49.750", "100"), ("74.750", "150")]


def test_a_chart_shows_a_single_point_and_an_empty_chart_says_that_it_is_empty():
    assert "<circle" in line_chart("l", [Series("a", [3], [1.5])], "x", "y")
    assert "There is nothing to show." in histograms({"h": [0]}, "x", "y")[0]
    assert "There is nothing to show." in line_chart("l", [Series("a", [0], [None])], "x", "y")


def test_a_line_passes_through_its_points_and_has_gaps_for_missing_values():
    series = Series("loss", [0, 50, 100, 150, 200], [2.0, 1.0, None, 1.5, 1.0])
    part = line_chart("l", [series], "updates", "nats")
    # 180 pixels from 2.05 down to 0.95.
    high, middle, low = (f"{180 * (2.05 - y) / 1.1:.2f}" for y in (2.0, 1.5, 1.0))
    assert f'<path d="M0.000 {high}L25.000 {low}M75.000 {middle}L100.000 {low}"' in part
    assert [row[1] for row in PageReader(part).rows[1:]] == ["2.0000", "1.0000", "–", "1.5000", "1.0000"]


def test_small_numbers_of_a_line_are_shown_with_enough_digits_to_differ():
    part = line_chart("l", [Series("rate", [1, 2], [0.0007, 0.0000123])], "updates", "rate")
    assert PageReader(part).rows == [["updates", "rate"], ["1", "0.0007000"], ["2", "0.0000123"]]


def test_stacked_bars_fill_their_row_in_proportion():
    part = stacked_bars("s", {"a": {"kept": 3, "empty": 1}, "b": {"kept": 0, "empty": 0}})
    assert re.findall(r'<rect x="([\d.]+)%" y="0" width="([\d.]+)%"', part) == [
        ("0.000", "75.000"),
        ("75.000", "25.000"),
    ]
    assert 'aria-label="kept: 3; empty: 1"' in part


def _colours() -> list[dict[str, str]]:
    """Return name → value of the colours in style.css, for light and dark."""
    style = files("mt.report").joinpath("templates/style.css").read_text("utf-8")
    return [dict(re.findall(r"--(\w+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*--page[^}]*)\}", style)]


def _contrast(one: str, other: str) -> float:
    """Return the contrast ratio of two colours, as defined in WCAG 2.2."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", _colours(), ids=["light", "dark"])
def test_text_and_shapes_have_enough_contrast(colours: dict[str, str]):
    assert _contrast("#000000", "#ffffff") == 21
    on = {"text": ["page", "panel", "warning", "info", "old", "new"], "muted": ["page", "panel"], "link": ["page"]}
    texts = [(text, ground) for text, grounds in on.items() for ground in grounds]
    assert [pair for pair in texts if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    shapes = [(f"c{i}", ground) for i in range(1, 7) for ground in ("page", "panel")]
    assert [pair for pair in shapes if _contrast(colours[pair[0]], colours[pair[1]]) < 3] == []


def test_in_text_without_spaces_only_the_characters_that_differ_are_marked() -> None:
    one, other = word_differences("我喜欢吃苹果。", "我喜欢吃香蕉。")
    assert (one, other) == ("我喜欢吃<mark>苹果</mark>。", "我喜欢吃<mark>香蕉</mark>。")
