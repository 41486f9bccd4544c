from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from html.parser import HTMLParser

import pytest

from mt.page import (
    DARK,
    LIGHT,
    Example,
    Html,
    Number,
    Series,
    Text,
    bars,
    difference,
    element,
    examples,
    folded,
    heat_map,
    histogram,
    key_path,
    labelled_texts,
    line_chart,
    markup,
    notice,
    page,
    paragraph,
    section,
    shortened,
    stacked_bars,
    subheading,
    table,
    tiles,
    value_at,
    visible,
    word_difference,
)

HOSTILE = '<script>alert("x")</script> &amp; \'=HYPERLINK("a")\' שלום \u202eevil\x00\ud800'


class PageReader(HTMLParser):
    """What a browser finds on a page; tags that are not closed in order fail."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.numbers: dict[str, str] = {}  # data-key: data-value
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        assert len(attributes) == len(attrs), f"an attribute of <{tag}> stands twice"
        self.tags.append((tag, attributes))
        if tag != "meta":
            self.open.append(tag)
        key = attributes.get("data-key")
        if key is not None:
            value = attributes["data-value"]
            assert value is not None
            assert self.numbers.setdefault(key, value) == value

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def shown(part: str) -> str:
    """The text of a part, without its tags."""
    return html.unescape(re.sub("<[^>]*>", "", part))


def _everything(text: str) -> str:
    number = Number(3, key_path("a", text))
    return page(
        text,
        [
            section(text, paragraph(text), subheading(text), notice(text), folded(text, text)),
            section(text, tiles([(text, number, text)]), table([text, "n"], [[text, number], [Text(text), number]])),
            section(text, bars(text, [(text, number)]), stacked_bars(text, [text], [(text, [number])])),
            section(text, histogram(text, [0, 1, 2], [3, 4], x_label=text, y_label=text)),
            section(text, line_chart(text, [Series(text, [1, 2], [3, 4])], x_label=text, y_label=text)),
            section(text, examples([Example(text, text, text, text)], "en", "he")),
            section(text, labelled_texts([(text, text, text)], text), *word_difference(text, text)),
            section(text, *word_difference(f"{text} {text}", f"another {text}")),
        ],
        lead=[text],
    )


def test_text_is_never_markup():
    harmless, hostile = PageReader(_everything("words")), PageReader(_everything(HOSTILE))
    # One more for each sign of a hidden character, which are spans.
    assert [tag for tag, _ in hostile.tags if tag != "span"] == [tag for tag, _ in harmless.tags if tag != "span"]
    assert [tag for tag, _ in hostile.tags].count("script") == 1
    assert '<script>alert("x")</script> &amp; \'=HYPERLINK("a")\' שלום [U+202E]evil[U+0000][U+D800]' in hostile.texts


def test_no_character_of_the_text_reaches_beyond_its_element_or_cannot_be_written():
    text = _everything(HOSTILE)
    assert not re.search("[\x00\ud800\u202e]", text)
    assert text.encode("utf-8").decode("utf-8") == text


def test_markup_that_was_put_together_as_a_string_is_escaped():
    assert markup(Html("<b>") + "x") == "&lt;b&gt;x"
    assert markup(Html("<b>")) == "<b>"
    assert element("p", {"title": Html('"')}, "a") == '<p title="&quot;">a</p>'


def test_a_page_fetches_nothing_and_runs_its_own_script_alone():
    text = _everything("words")
    assert "://" not in text
    assert not re.search(r"\b(?:src|href)=\"[^#]|@import|url\(", text)
    (script,) = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'" in text


def test_a_page_without_tables_to_sort_has_no_script():
    assert "<script" not in page("t", [section("a", table(["x"], [["1"], ["2"]], sortable=False))])


def test_headings_have_anchors_of_their_own():
    text = page("t", [section("Loss & BLEU"), section("Loss, BLEU"), section("Verlust", anchor="loss")])
    assert re.findall('id="(.*?)"', text) == ["loss-bleu", "loss-bleu-2", "loss"]
    assert re.findall('href="(.*?)"', text) == ["#loss-bleu", "#loss-bleu-2", "#loss"]


@pytest.mark.parametrize(
    ("number", "text", "value"),
    [
        (Number(1_234_567), "1,234,567", "1234567"),
        (Number(1_234.5678), "1,234.57", "1234.5678"),
        (Number(2.0, digits=0), "2", "2.0"),
        (Number(0.85, unit="share"), "85.0%", "0.85"),
        (Number(0.00001, unit="share"), "<0.1%", "1e-05"),
        (Number(0.99999, unit="share"), ">99.9%", "0.99999"),
        (Number(0.99999, unit="share", digits=3), "99.999%", "0.99999"),
        (Number(0, unit="share"), "0%", "0"),
        (Number(1.0, unit="share"), "100%", "1.0"),
        (Number(3.14159, unit="seconds"), "3.14 s", "3.14159"),
        (Number(59.96, unit="seconds"), "60.0 s", "59.96"),
        (Number(119.7, unit="seconds"), "2 min 00 s", "119.7"),
        (Number(7_325.0, unit="seconds"), "2 h 02 min", "7325.0"),
        (Number(843_210_752, unit="bytes"), "804.1 MiB", "843210752"),
        (Number(512, unit="bytes"), "512 bytes", "512"),
        (Number(None), "–", "null"),
        (Number(math.nan, unit="share"), "–", "null"),
        (Number(math.inf), "–", "null"),
        (Number(-math.inf, unit="seconds"), "–", "null"),
    ],
)
def test_numbers_are_shown_rounded_and_kept_unrounded(number: Number, text: str, value: str):
    assert str(number) == text
    assert number.html() == f'<span data-value="{value}">{html.escape(text)}</span>'


def test_a_key_leads_to_its_value_whatever_its_names_hold():
    facts = {"test": {"news.2014\\x": {"pairs": 3}}, "list": [[1, 2], [3, {"a": 4}]]}
    assert key_path("test", "news.2014\\x", "pairs") == "test.news\\.2014\\\\x.pairs"
    assert value_at(facts, key_path("test", "news.2014\\x", "pairs")) == 3
    assert value_at(facts, "list.1.1.a") == 4
    with pytest.raises(KeyError):
        value_at(facts, "test.news")


def test_numbers_of_a_table_stand_at_the_right_under_a_header_that_does_too():
    text = table(["name", "n"], [["a", Number(1_000, "x.n")]], total=["all", Number(2)])
    assert '<th scope="col" class="n">n</th>' in text
    assert '<td class="n" data-value="1000" data-key="x.n">1,000</td>' in text
    assert '<tfoot><tr><th scope="row" dir="auto">all</th><td class="n" data-value="2">2</td></tr></tfoot>' in text


def test_text_of_a_table_has_its_language_and_finds_its_direction():
    text = table(["id", "target"], [["1", Text("שלום", "he")]])
    assert '<td lang="he" dir="auto" class="text">שלום</td>' in text


def test_hidden_characters_are_shown():
    assert shown(visible(" a  b\tc\xa0d\u200be\u202e ")) == "·a··b⇥c⍽dU+200BeU+202E·"
    assert 'title="U+00A0 NO-BREAK SPACE"' in visible("\xa0")
    assert 'title="U+0009 TAB"' in visible("\t")
    # As text is spelled in Persian, and in emoji.
    assert visible("می\u200cخواهم 👩\u200d🔬 a b") == "می\u200cخواهم 👩\u200d🔬 a b"


def test_long_text_says_how_much_is_not_shown():
    assert shown(shortened("x" * 1_500)) == "x" * 1_000 + " … 500 more characters"
    assert shortened("x" * 1_000) == "x" * 1_000


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
def test_what_differs_is_marked_and_named(before: str, after: str, marked: tuple[str, str], described: str):
    old, new, names = difference(before, after)

    def plain(part: str) -> str:
        return html.unescape(re.sub("</?span[^>]*>", "", part))

    assert (plain(old), plain(new)) == marked
    assert names == described


def test_of_long_texts_the_first_difference_is_shown():
    old, new, names = difference("x" * 5_000 + "a" + "y" * 5_000, "x" * 5_000 + "b" + "y" * 5_000)
    assert shown(old) == "…" + "x" * 100 + "a" + "y" * 898 + " … 4,102 more characters"
    assert shown(new) == shown(old).replace("a" + "y", "b" + "y")
    assert names == "U+0061 LATIN SMALL LETTER A → U+0062 LATIN SMALL LETTER B"

    old, new, _ = difference("x" * 5_000 + "  ", "x" * 5_000)
    assert (shown(old), shown(new)) == ("…" + "x" * 100 + "··", "…" + "x" * 100)


def test_of_texts_that_share_nothing_the_beginning_is_compared():
    old, new, _ = difference("ab" * 50_000, "ba" * 50_000)  # with all of it this would take hours
    assert (shown(old), shown(new)) == tuple(text * 500 + " … 99,000 more characters" for text in ("ab", "ba"))


@pytest.mark.parametrize(
    ("one", "other", "marked"),
    [
        # The space between two words is marked with them, that around them is not.
        ("a b c d", "a x d", ("a <mark>b c</mark> d", "a <mark>x</mark> d")),
        ("Er kam.", "Er ging!", ("Er <mark>kam.</mark>", "Er <mark>ging!</mark>")),
        ("a", "a b", ("a", "a <mark>b</mark>")),
        ("", "a <b>", ("", "<mark>a &lt;b&gt;</mark>")),
        ("same", "same", ("same", "same")),
        ("a  b", "a b", ("a··b", "a b")),  # no word differs
        # Signs that are no letters belong to the word that they stand in.
        ("हिन्दी भाषा", "हिन्दू भाषा", ("<mark>हिन्दी</mark> भाषा", "<mark>हिन्दू</mark> भाषा")),
        ("cafe\u0301s", "cafes", ("<mark>cafe\u0301s</mark>", "<mark>cafes</mark>")),
    ],
)
def test_words_that_the_other_text_has_not_are_marked(one: str, other: str, marked: tuple[str, str]):
    parts = word_difference(one, other)
    assert tuple(re.sub("</?span[^>]*>", "", part) for part in parts) == marked


def test_of_long_texts_the_beginning_is_compared_by_words():
    one, other = word_difference("word " * 300, "word " * 200 + "end " * 100)
    assert shown(one).endswith("word word  … 500 more characters")
    assert shown(other).endswith("word word  … 400 more characters")
    assert "<mark>" not in one + other  # what differs is not shown


def test_translations_in_a_loop_are_not_aligned(monkeypatch: pytest.MonkeyPatch):
    def align(*_: object, **__: object) -> None:
        raise AssertionError("which takes seconds for each")

    monkeypatch.setattr("mt.page.SequenceMatcher", align)
    one, other = word_difference("So " + "!" * 900 + " ja", "So " + "!?" * 450 + " ja")
    # They begin alike and end alike.
    assert one == f"So !<mark>{'!' * 899}</mark> ja"
    assert other == f"So !<mark>{'?!' * 449}?</mark> ja"
    assert difference("!" * 1_000, "!?" * 500)[0] == f"!<del>{'!' * 999}</del>"


def test_labelled_texts_have_their_language_and_say_where_nothing_is():
    part = labelled_texts(
        [("Source", "שלום <b>", "he"), ("System", "", "de"), ("By us", Html("<i>x</i>"), None)], "line 3"
    )
    assert part == (
        '<div class="labelled"><p class="place">line 3</p><dl>'
        '<dt>Source</dt><dd lang="he" dir="auto">שלום &lt;b&gt;</dd>'
        '<dt>System</dt><dd lang="de" dir="auto"><span class="muted">(empty)</span></dd>'
        '<dt>By us</dt><dd dir="auto"><i>x</i></dd></dl></div>'
    )
    assert labelled_texts([("a", "b", None)]).startswith('<div class="labelled"><dl>')


def test_a_heat_map_has_a_square_for_each_weight():
    part = heat_map(["<s>", "b"], ["x"], [[0.25], [1.0]])
    assert re.findall("<td .*?</td>", part) == [
        '<td style="background:rgba(var(--map),0.25)" title="&lt;s&gt; x 0.250"></td>',
        '<td style="background:rgba(var(--map),1.00)" title="b x 1.000"></td>',
    ]


def _rects(part: str) -> list[tuple[float, float]]:
    """(x in percent, height in pixels) of the bars of a histogram."""
    return [(float(x), float(y)) for x, y in re.findall(r'<rect x="([\d.]+)%".*?height="([\d.]+)"', part)]


def test_bars_of_a_histogram_are_as_high_as_their_counts():
    part = histogram("h", [0, 0.5, 1, math.inf], [10, 20, 5], x_label="ratio", y_label="pairs", key="r.counts")
    assert [height for _, height in _rects(part)] == [90.0, 180.0, 45.0]
    assert re.findall("<title>(.*?)</title>", part) == [
        "0 up to 0.5 ratio: 10 pairs",
        "0.5 up to 1 ratio: 20 pairs",
        "1 and above ratio: 5 pairs",
    ]
    assert PageReader(part).numbers == {"r.counts.0": "10", "r.counts.1": "20", "r.counts.2": "5"}
    assert 'aria-label="Histogram: h. 3 bars; the highest is 0.5 up to 1 ratio: 20 pairs.' in part


def test_a_histogram_of_many_counts_joins_them_in_bars_and_lists_all():
    part = histogram("h", range(1, 202), [2] * 200, x_label="tokens", y_label="pairs", key="k", whole_numbers=True)
    bars_of_four = re.findall("<title>(.*?)</title>", part)
    assert (len(bars_of_four), bars_of_four[0], bars_of_four[-1]) == (
        50,
        "1–4 tokens: 8 pairs",
        "197–200 tokens: 8 pairs",
    )
    assert PageReader(part).numbers == {f"k.{i}": "2" for i in range(200)}
    # Under the middle of the bin of 50, and so on.
    assert re.findall(r'<text x="([\d.]+)%" y="198" text-anchor="middle">(\d+)<', part) == [
        ("24.750", "50"),
        ("49.750", "100"),
        ("74.750", "150"),
        ("99.750", "200"),
    ]


def test_charts_of_nothing_say_so():
    assert "There is nothing to show." in histogram("h", [0, 1], [0], x_label="x", y_label="y")
    assert "There is nothing to show." in line_chart("l", [Series("a", [0], [None])], x_label="x", y_label="y")


def test_a_line_goes_through_its_points_and_has_gaps_where_nothing_is_known():
    series = Series("loss", [0, 50, 100, 150, 200], [2.0, 1.0, None, 1.5, 1.0], key="loss")
    part = line_chart("l", [series], x_label="updates", y_label="nats")
    # 180 pixels from 2.05 down to 0.95.
    high, middle, low = (f"{180 * (2.05 - y) / 1.1:.2f}" for y in (2.0, 1.5, 1.0))
    expected = f"M0.000 {high}L25.000 {low}M75.000 {middle}L100.000 {low}"
    assert f'<path d="{expected}"' in part
    assert PageReader(part).numbers == {f"loss.{i}": json.dumps(y) for i, y in enumerate(series.ys)}


def test_points_of_a_list_of_entries_have_their_field_in_the_key():
    series = Series("BLEU", [0, 10], [20.5, 30.25], key_path("by_length", "a.b"), "bleu.2017")
    part = line_chart("l", [series], x_label="words", y_label="BLEU")
    assert PageReader(part).numbers == {
        "by_length.a\\.b.0.bleu\\.2017": "20.5",
        "by_length.a\\.b.1.bleu\\.2017": "30.25",
    }
    assert value_at({"by_length": {"a.b": [{}, {"bleu.2017": 30.25}]}}, series.key_of(1) or "") == 30.25
    assert Series("BLEU", [0], [1.0], "x").key_of(0) == "x.0"
    assert Series("BLEU", [0], [1.0], None, "bleu").key_of(0) is None


def test_small_numbers_of_a_line_are_shown_with_digits_that_differ():
    part = line_chart("l", [Series("rate", [1, 2], [0.0007, 0.0000123])], x_label="updates", y_label="rate")
    assert re.findall(r'<td class="n" data-value="[^"]*">(.*?)</td>', part) == ["0.0007000", "0.0000123"]
    part = line_chart("l", [Series("loss", [1, 2], [9.25, 0.1])], x_label="updates", y_label="nats")
    assert re.findall(r'<td class="n" data-value="[^"]*">(.*?)</td>', part) == ["9.2500", "0.1000"]


def test_a_logarithmic_axis_has_equal_room_for_equal_factors():
    series = Series("loss", [0, 1, 10, 100], [9.0, 3.0, 2.0, 1.0])
    part = line_chart("l", [series], x_label="updates", y_label="nats", log_x=True)
    assert re.findall(r'cx="([\d.]+)%"', part) == ["0.000", "50.000", "100.000"]  # nothing at 0 updates
    assert re.findall(r'text-anchor="middle">(\w+)<', part) == ["1", "10", "100"]


def test_one_point_and_equal_points_make_a_chart():
    assert "<circle" in line_chart("l", [Series("a", [3], [1.5])], x_label="x", y_label="y")
    assert "<circle" in line_chart("l", [Series("a", [1_000], [0.0])], x_label="x", y_label="y", log_x=True)


def test_stacked_bars_fill_their_row_in_proportion():
    part = stacked_bars("s", ["kept", "empty"], [("a", [Number(3), Number(1)]), ("b", [Number(0), Number(0)])])
    assert re.findall(r'<rect x="([\d.]+)%" y="0" width="([\d.]+)%"', part) == [
        ("0.000", "75.000"),
        ("75.000", "25.000"),
    ]
    assert 'aria-label="kept: 3; empty: 1"' in part


def _contrast(one: str, other: str) -> float:
    """WCAG 2.2: contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_shapes_can_be_told_from_what_they_stand_on(colours: dict[str, str]):
    assert _contrast("#000000", "#ffffff") == 21
    on = {"text": ["page", "panel", "warning", "info", "old", "new"], "muted": ["page", "panel"], "link": ["page"]}
    texts = [(text, ground) for text, grounds in on.items() for ground in grounds]
    assert [pair for pair in texts if _contrast(colours[pair[0]], colours[pair[1]]) < 4.5] == []
    shapes = [(f"c{i}", ground) for i in range(1, 7) for ground in ("page", "panel")]
    assert [pair for pair in shapes if _contrast(colours[pair[0]], colours[pair[1]]) < 3] == []
