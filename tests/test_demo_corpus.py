"""The demo corpus: its committed bytes, its splits, and the inflection that it is made with."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "data" / "demo"
N_LINES = {"train": 20_000, "valid": 1_000, "test": 1_000}


def load_script() -> ModuleType:
    path = ROOT / "scripts" / "make_demo_corpus.py"
    spec = importlib.util.spec_from_file_location("make_demo_corpus", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up here
    spec.loader.exec_module(module)
    return module


grammar = load_script()


def read_lines(split: str, language: str) -> list[str]:
    return (DEMO / f"{split}.{language}").read_text(encoding="utf-8").removesuffix("\n").split("\n")


def test_the_script_writes_the_committed_bytes(tmp_path: Path) -> None:
    grammar.write_corpus(tmp_path, seed=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        f"{split}.{language}" for split in N_LINES for language in ("en", "de")
    )
    for path in tmp_path.iterdir():
        assert path.read_bytes() == (DEMO / path.name).read_bytes(), path.name


@pytest.mark.parametrize("split", N_LINES)
@pytest.mark.parametrize("language", ["en", "de"])
def test_a_split_has_its_number_of_sentences_of_4_to_25_words(split: str, language: str) -> None:
    lines = read_lines(split, language)
    assert len(lines) == N_LINES[split]
    assert all(4 <= len(line.split()) <= 25 for line in lines)


@pytest.mark.parametrize("language", ["en", "de"])
def test_no_sentence_comes_twice_in_or_across_splits(language: str) -> None:
    lines = [line for split in N_LINES for line in read_lines(split, language)]
    assert len(set(lines)) == len(lines) == 22_000


@pytest.mark.parametrize("language", ["en", "de"])
def test_sentences_are_tidy(language: str) -> None:
    for split in N_LINES:
        for line in read_lines(split, language):
            assert re.fullmatch(r"[A-ZÄÖÜ][A-Za-zÄÖÜäöüß' ,-]*[a-zäöüß][.?!]", line), line
            assert not re.search(r"  | ,|,,|,\S", line), line


def test_every_noun_and_adjective_occurs_thirty_times_in_training() -> None:
    text = " ".join(read_lines("train", "en")).lower().replace("'s", "")
    counts = Counter(re.findall(r"living rooms?|[\w-]+", text))
    for noun in grammar.NOUNS.values():
        assert sum(counts[form] for form in {noun.en, noun.en_plural}) >= 30, noun.en
    for adjective in grammar.ADJECTIVES:
        assert counts[adjective.en] >= 30, adjective.en


@pytest.mark.parametrize(
    ("declension", "gender", "case", "expected"),
    [
        ("weak", "m", "nom", "alte"),
        ("weak", "m", "acc", "alten"),
        ("weak", "f", "dat", "alten"),
        ("weak", "p", "nom", "alten"),
        ("mixed", "m", "nom", "alter"),
        ("mixed", "n", "acc", "altes"),
        ("mixed", "f", "acc", "alte"),
        ("strong", "m", "dat", "altem"),
        ("strong", "f", "dat", "alter"),
        ("strong", "p", "acc", "alte"),
        ("strong", "p", "dat", "alten"),
    ],
)
def test_adjective_endings(declension: str, gender: str, case: str, expected: str) -> None:
    assert grammar.german_adjective("alt", declension, gender, case) == expected


def test_teuer_and_dunkel_lose_an_e() -> None:
    assert grammar.german_adjective("teuer", "weak", "m", "nom") == "teure"
    assert grammar.german_adjective("dunkel", "mixed", "n", "nom") == "dunkles"
    assert grammar.german_adjective("müde", "mixed", "m", "nom") == "müder"


@pytest.mark.parametrize(
    ("noun", "case", "plural", "expected"),
    [
        ("table", "gen", False, "Tisches"),
        ("teacher", "gen", False, "Lehrers"),
        ("mother", "gen", False, "Mutter"),
        ("boy", "acc", False, "Jungen"),
        ("student", "gen", False, "Studenten"),
        ("neighbour", "dat", False, "Nachbarn"),
        ("child", "dat", True, "Kindern"),
        ("woman", "dat", True, "Frauen"),
        ("car", "dat", True, "Autos"),
    ],
)
def test_noun_forms(noun: str, case: str, plural: bool, expected: str) -> None:
    assert grammar.german_noun(grammar.NOUNS[noun], case, plural) == expected


def test_compounds_take_the_gender_and_plural_of_their_head() -> None:
    compounds = {noun.en: noun for noun in grammar.ALL_NOUNS}
    table = compounds["kitchen table"]
    assert (table.de, table.gender, table.de_plural) == ("Küchentisch", "m", "Küchentische")


def test_number_words() -> None:
    expected = {1: "eins", 7: "sieben", 12: "zwölf", 16: "sechzehn", 17: "siebzehn", 21: "einundzwanzig"}
    expected |= {30: "dreißig", 38: "achtunddreißig", 60: "sechzig", 77: "siebenundsiebzig", 99: "neunundneunzig"}
    assert {number: grammar.german_number(number) for number in expected} == expected
    assert [grammar.english_number(n) for n in (13, 21, 40, 99)] == ["thirteen", "twenty-one", "forty", "ninety-nine"]
    assert len({grammar.german_number(n) for n in range(1, 100)}) == 99
    assert len({grammar.english_number(n) for n in range(1, 100)}) == 99


@pytest.mark.parametrize(
    ("hour", "minute", "english", "german"),
    [
        (3, 30, "half past three", "halb vier"),
        (12, 30, "half past twelve", "halb eins"),
        (1, 0, "one o'clock", "ein Uhr"),
        (8, 15, "quarter past eight", "Viertel nach acht"),
        (12, 45, "quarter to one", "Viertel vor eins"),
        (4, 50, "ten to five", "zehn vor fünf"),
        (6, 20, "twenty past six", "zwanzig nach sechs"),
    ],
)
def test_clock_times(hour: int, minute: int, english: str, german: str) -> None:
    assert grammar.clock_time(hour, minute) == (english, german)


@pytest.mark.parametrize(
    ("verb", "present", "past", "participle", "zu_infinitive"),
    [
        ("call", ("rufe", "rufst", "ruft", "rufen"), "rief", "angerufen", "anzurufen"),
        ("invite", ("lade", "lädst", "lädt", "laden"), "lud", "eingeladen", "einzuladen"),
        ("turn+on", ("schalte", "schaltest", "schaltet", "schalten"), "schaltete", "eingeschaltet", "einzuschalten"),
        ("try+on", ("probiere", "probierst", "probiert", "probieren"), "probierte", "anprobiert", "anzuprobieren"),
        ("visit", ("besuche", "besuchst", "besucht", "besuchen"), "besuchte", "besucht", "zu besuchen"),
        ("read", ("lese", "liest", "liest", "lesen"), "las", "gelesen", "zu lesen"),
        ("open", ("öffne", "öffnest", "öffnet", "öffnen"), "öffnete", "geöffnet", "zu öffnen"),
        ("feed", ("füttere", "fütterst", "füttert", "füttern"), "fütterte", "gefüttert", "zu füttern"),
        ("close", ("schließe", "schließt", "schließt", "schließen"), "schloss", "geschlossen", "zu schließen"),
        ("find", ("finde", "findest", "findet", "finden"), "fand", "gefunden", "zu finden"),
    ],
)
def test_german_verb_forms(verb: str, present: tuple[str, ...], past: str, participle: str, zu_infinitive: str) -> None:
    entry = grammar.VERBS[verb]
    assert grammar.german_present(entry) == present
    assert (entry.de_past, entry.de_participle) == (past, participle)
    assert grammar.german_zu_infinitive(entry) == zu_infinitive


def test_imperatives_change_e_to_i_but_not_a_to_ä() -> None:
    forms = {verb: grammar.german_imperative(grammar.VERBS[verb]) for verb in ("give", "wash", "open", "buy", "feed")}
    assert forms == {"give": "gib", "wash": "wasch", "open": "öffne", "buy": "kauf", "feed": "füttere"}


def test_english_forms() -> None:
    assert [grammar.english_past(verb) for verb in ("carry", "love", "visit", "play")] == [
        "carried",
        "loved",
        "visited",
        "played",
    ]
    assert [grammar.english_gerund(verb) for verb in ("lie", "swim", "see", "write", "visit")] == [
        "lying",
        "swimming",
        "seeing",
        "writing",
        "visiting",
    ]
    assert grammar.english_article("old table") == "an old table"
    assert grammar.english_degree("happy", "er") == "happier"


def pair(tense: str, negated: bool = False) -> tuple[str, str, str]:
    """Anna calls the teacher: English, German main clause, German subordinate clause."""
    anna = grammar.name_phrase("Anna", woman=True)
    teacher = grammar.NOUNS["teacher"]
    the = grammar.Determiner("the", grammar.DEFINITE_ARTICLES["m"], "weak")
    phrase = grammar.VerbPhrase(grammar.VERBS["call"], nicht=negated)
    phrase = grammar.add_object(phrase, grammar.compose(teacher, False, the, []), "acc", negated)
    clause = grammar.Clause(anna, phrase, tense, negated)
    return grammar.english_statement(clause), grammar.german_statement(clause), grammar.german_subordinate(clause)


def test_the_separable_prefix_stands_last_in_a_main_clause_and_joins_the_verb_in_a_subordinate_one() -> None:
    assert pair("present") == ("Anna calls the teacher", "Anna ruft den Lehrer an", "Anna den Lehrer anruft")
    assert pair("past", negated=True) == (
        "Anna did not call the teacher",
        "Anna rief den Lehrer nicht an",
        "Anna den Lehrer nicht anrief",
    )
    assert pair("perfect") == (
        "Anna has called the teacher",
        "Anna hat den Lehrer angerufen",
        "Anna den Lehrer angerufen hat",
    )
    assert pair("have to") == (
        "Anna has to call the teacher",
        "Anna muss den Lehrer anrufen",
        "Anna den Lehrer anrufen muss",
    )


@pytest.mark.parametrize(("noun", "german"), [("table", "er"), ("lamp", "sie"), ("house", "es")])
def test_it_agrees_with_its_antecedent(noun: str, german: str) -> None:
    entry = grammar.NOUNS[noun]
    the = grammar.Determiner("the", grammar.DEFINITE_ARTICLES[entry.gender], "weak")
    pronoun = grammar.back_reference(grammar.compose(entry, False, the, []))
    assert (pronoun.en, pronoun.in_case("nom")) == ("it", german)
