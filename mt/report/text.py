"""Text from data for a page: invisible characters are shown, harmful ones replaced, and differences marked.

Text may contain anything: tags, quotes, control characters, bidirectional overrides.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from difflib import SequenceMatcher

import regex
from markupsafe import Markup, escape

MAX_EXAMPLE_CHARS = 1_000  # longer texts are cut, and the page says how much is left out
_MOST_MATCHES = 100_000  # pairs of equal parts of two texts; with more, aligning them would take many seconds

# Characters that HTML or UTF-8 cannot represent, or that would change the direction of the text around them.
_HARMFUL = regex.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff\u202a-\u202e\u2066-\u2069]")
# Characters that are invisible or look like a space, except the joiners U+200C and U+200D, which words and emoji are
# spelled with.
_INVISIBLE_INSIDE = regex.compile(
    "[\x00-\x1f\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180e\u2000-\u200b\u200e\u200f\u2028-\u202f"
    "\u205f-\u206f\u3000\u3164\ud800-\udfff\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U000e0000-\U000e007f]"
    "| {2,}"
)
_INVISIBLE = regex.compile(f"{_INVISIBLE_INSIDE.pattern}|^ +| +$")
_UNSPACED = (
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Khmer}\p{Lao}\p{Myanmar}\p{Thai}\p{Tibetan}]"  # each character is a word
)
_WORDS = regex.compile(rf"\s+|{_UNSPACED}\p{{M}}*|[[\w\p{{M}}]--{_UNSPACED}]+|[^\w\s]\p{{M}}*", regex.VERSION1)
_CONTROL_NAMES = {"\t": "TAB", "\n": "LINE FEED", "\r": "CARRIAGE RETURN"}  # Unicode has no names for these
_SIGNS = {" ": "·", "\t": "⇥", "\n": "↵", "\xa0": "⍽"}


def harmless(text: str) -> str:
    """Replace characters that cannot be written or would change the direction of text by their code points."""
    return str(_HARMFUL.sub(lambda match: f"[{_code_point(match[0])}]", text))


def _code_point(character: str) -> str:
    return f"U+{ord(character):04X}"


def character_name(character: str) -> str:
    """Return a name such as `U+00A0 NO-BREAK SPACE`."""
    name = _CONTROL_NAMES.get(character) or unicodedata.name(character, "")
    return f"{_code_point(character)} {name}".rstrip()


def _sign(character: str) -> Markup:
    sign = _SIGNS.get(character, _code_point(character))
    return Markup('<span class="sign" title="{}">{}</span>').format(character_name(character), sign)


def visible(text: str, invisible: regex.Pattern[str] = _INVISIBLE) -> Markup:
    """Return text in which spaces at the ends, double spaces and invisible characters are shown as signs."""
    parts, end = [], 0
    for match in invisible.finditer(text):
        parts += [escape(text[end : match.start()]), *map(_sign, match[0])]
        end = match.end()
    return Markup("").join([*parts, text[end:]])


def truncated(text: str) -> Markup:
    """Return `visible` text; of long text, its beginning and the number of characters left out."""
    return visible(text[:MAX_EXAMPLE_CHARS]) + _more(text)


def _more(text: str) -> Markup:
    if len(text) <= MAX_EXAMPLE_CHARS:
        return Markup()
    return Markup('<span class="muted"> … {:,} more characters</span>').format(len(text) - MAX_EXAMPLE_CHARS)


# --------------------------------------------------------------------------------------------------- differences


def character_differences(before: str, after: str) -> tuple[Markup, Markup, str]:
    """Return two versions of a text with their differences marked, and the names of the first differing characters.

    Long texts are shown from shortly before the first difference.
    """

    def mark(text: str, tag: str) -> Markup:
        signs = Markup("").join(_sign(c) if _INVISIBLE.match(c) else c for c in text)
        return Markup("<{0}>{1}</{0}>").format(Markup(tag), signs) if text else Markup()

    texts = _from_first_difference(before, after)
    # Combining marks stay with their letters.
    old, new, changes = _marked(texts, regex.compile(r"\X"), mark)
    short = [(removed, added) for removed, added in changes if max(len(removed), len(added)) <= 4]
    described = dict.fromkeys(f"{_named(removed)} → {_named(added)}" for removed, added in short)
    return old, new, "; ".join([*described][:3])


def word_differences(one: str, other: str) -> tuple[Markup, Markup]:
    """Return two versions of a text; words that the other version does not have are marked."""

    def mark(text: str, _tag: str) -> Markup:
        if not text.strip():
            return visible(text, _INVISIBLE_INSIDE)
        # The space between two marked words is marked, too; the space before or after them is not.
        start, inner, end = text.partition(text.strip())
        return Markup("{}<mark>{}</mark>{}").format(start, visible(inner, _INVISIBLE_INSIDE), end)

    old, new, _ = _marked((one, other), _WORDS, mark)
    return old, new


def _marked(
    texts: tuple[str, str], unit: regex.Pattern[str], mark: Callable[[str, str], Markup]
) -> tuple[Markup, Markup, list[tuple[str, str]]]:
    """Return two versions of a text with their differences marked, and the parts that differ.

    Args:
        unit: matches the units of comparison, such as words.
        mark: marks a part that differs, as `del` in the first version or `ins` in the second.
    """
    units = [unit.findall(text[:MAX_EXAMPLE_CHARS]) for text in texts]
    shown: tuple[list[Markup], list[Markup]] = ([], [])
    changes = []
    for tag, i, j, k, m in _opcodes(*units):
        parts = ("".join(units[0][i:j]), "".join(units[1][k:m]))
        if tag != "equal":
            changes.append(parts)
        for side, part, name in zip(shown, parts, ("del", "ins"), strict=True):
            side.append(visible(part, _INVISIBLE_INSIDE) if tag == "equal" else mark(part, name))
    old, new = (Markup("").join([*side, _more(text)]) for side, text in zip(shown, texts, strict=True))
    return old, new, changes


def _from_first_difference(before: str, after: str) -> tuple[str, str]:
    """Return short texts unchanged, and long ones from shortly before their first difference."""
    if max(len(before), len(after)) <= MAX_EXAMPLE_CHARS:
        return before, after
    first = next((i for i, (old, new) in enumerate(zip(before, after, strict=False)) if old != new), None)
    if first is None:  # one text is the beginning of the other
        first = min(len(before), len(after))
    start = max(first - MAX_EXAMPLE_CHARS // 10, 0)
    return ("…" if start else "") + before[start:], ("…" if start else "") + after[start:]


def _opcodes(old: Sequence[str], new: Sequence[str]) -> list[tuple[str, int, int, int, int]]:
    """Return difflib's opcodes; for very repetitive texts, everything between the common ends is one change."""
    n_old, n_new = Counter(old), Counter(new)
    if sum(n * n_new[part] for part, n in n_old.items()) <= _MOST_MATCHES:
        return [*SequenceMatcher(None, old, new, autojunk=False).get_opcodes()]
    shorter = min(len(old), len(new))
    start = next((i for i in range(shorter) if old[i] != new[i]), shorter)
    n_end = next((i for i in range(shorter - start) if old[-1 - i] != new[-1 - i]), shorter - start)
    old_end, new_end = len(old) - n_end, len(new) - n_end
    return [
        ("equal", 0, start, 0, start),
        ("replace", start, old_end, start, new_end),
        ("equal", old_end, len(old), new_end, len(new)),
    ]


def _named(text: str) -> str:
    return " + ".join(map(character_name, text)) or "nothing"
