"""Write the English-German demo corpus: data/demo/{train,valid,test}.{en,de}, one sentence a line.

Every pair comes from the lexicon and the grammar below; nothing is copied from a corpus. The grammar builds both
languages at once: a phrase builder picks meanings (a noun, a verb frame, a tense) and returns the two wordings.

The English side decides the German one, so a good model can score very high:
  * one English lemma has one German lemma ("you" is the singular "du"; "know" is "kennen" before a noun phrase and
    "wissen" before a clause);
  * simple past is Präteritum, present perfect is Perfekt, progressive is Präsens with "gerade";
  * "it" always has its antecedent in the sentence, because er, sie or es depends on the antecedent's gender.

The same seed gives the same bytes on every Python: the only source of chance is `random.Random.random`, whose
sequence the language guarantees, and no set or hash order is ever used.

    python scripts/make_demo_corpus.py [--output data/demo] [--seed 1]
"""

from __future__ import annotations

import argparse
import os
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

N_TRAIN = 20_000  # pairs
N_VALID = 1_000  # pairs
N_TEST = 1_000  # pairs
MIN_WORDS = 4  # per sentence and side
MAX_WORDS = 25  # per sentence and side

T = TypeVar("T")
Pair = tuple[str, str]  # English, German

# --------------------------------------------------------------------------------------------------------------------
# Lexicon. Nouns: English [plural] | German, gender, plural [flags] | semantic classes.
# The flag "weak" marks the n-declension (der Junge, den Jungen), "mass" a noun without plural.
# --------------------------------------------------------------------------------------------------------------------

NOUN_TABLE = """
man men | Mann m Männer | person
woman women | Frau f Frauen | person
child children | Kind n Kinder | person
boy | Junge m Jungen weak | person
teacher | Lehrer m Lehrer | person
doctor | Arzt m Ärzte | person
friend | Freund m Freunde | person kin
mother | Mutter f Mütter | person kin
father | Vater m Väter | person kin
brother | Bruder m Brüder | person kin
sister | Schwester f Schwestern | person kin
son | Sohn m Söhne | person kin
daughter | Tochter f Töchter | person kin
uncle | Onkel m Onkel | person kin
aunt | Tante f Tanten | person kin
grandmother | Großmutter f Großmütter | person kin
grandfather | Großvater m Großväter | person kin
neighbour | Nachbar m Nachbarn weak | person kin
student | Student m Studenten weak | person
policeman policemen | Polizist m Polizisten weak | person
baker | Bäcker m Bäcker | person
farmer | Bauer m Bauern weak | person
customer | Kunde m Kunden weak | person
guest | Gast m Gäste | person
waitress | Kellnerin f Kellnerinnen | person
actress | Schauspielerin f Schauspielerinnen | person
nurse | Krankenschwester f Krankenschwestern | person
queen | Königin f Königinnen | person
king | König m Könige | person
colleague | Kollege m Kollegen weak | person kin
engineer | Ingenieur m Ingenieure | person
lawyer | Anwalt m Anwälte | person
painter | Maler m Maler | person
dog | Hund m Hunde | animal
cat | Katze f Katzen | animal
horse | Pferd n Pferde | animal
bird | Vogel m Vögel | animal
cow | Kuh f Kühe | animal
mouse mice | Maus f Mäuse | animal
duck | Ente f Enten | animal
rabbit | Kaninchen n Kaninchen | animal
apple | Apfel m Äpfel | food fruit
cake | Kuchen m Kuchen | food baked
egg | Ei n Eier | food
soup | Suppe f Suppen | food dish
potato | Kartoffel f Kartoffeln | food
tomato | Tomate f Tomaten | food fruit
orange | Orange f Orangen | food fruit
cherry | Kirsche f Kirschen | food fruit
sausage | Wurst f Würste | food
salad | Salat m Salate | food
roll | Brötchen n Brötchen | food baked
bread | Brot n - mass | food baked
cheese | Käse m - mass | food
meat | Fleisch n - mass | food dish
rice | Reis m - mass | food dish
ham | Schinken m - mass | food
chocolate | Schokolade f - mass | food
water | Wasser n - mass | drink
milk | Milch f - mass | drink
coffee | Kaffee m - mass | drink
tea | Tee m - mass | drink
beer | Bier n - mass | drink
wine | Wein m - mass | drink
juice | Saft m - mass | drink
lemonade | Limonade f - mass | drink
book | Buch n Bücher | text
letter | Brief m Briefe | text
newspaper | Zeitung f Zeitungen | text
novel | Roman m Romane | text
poem | Gedicht n Gedichte | text
report | Bericht m Berichte | text
story | Geschichte f Geschichten | text tale
message | Nachricht f Nachrichten | text
magazine | Zeitschrift f Zeitschriften | text
coat | Mantel m Mäntel | clothes
jacket | Jacke f Jacken | clothes
shirt | Hemd n Hemden | clothes
dress | Kleid n Kleider | clothes
hat | Hut m Hüte | clothes
skirt | Rock m Röcke | clothes
scarf scarves | Schal m Schals | clothes
blouse | Bluse f Blusen | clothes
sweater | Pullover m Pullover | clothes
key | Schlüssel m Schlüssel | thing
bag | Tasche f Taschen | thing
cup | Tasse f Tassen | thing upright
glass | Glas n Gläser | thing upright
bottle | Flasche f Flaschen | thing upright
plate | Teller m Teller | thing upright
knife knives | Messer n Messer | thing
fork | Gabel f Gabeln | thing
spoon | Löffel m Löffel | thing
bowl | Schüssel f Schüsseln | thing upright
umbrella | Regenschirm m Regenschirme | thing
suitcase | Koffer m Koffer | thing upright
basket | Korb m Körbe | thing upright
ball | Ball m Bälle | thing
gift | Geschenk n Geschenke | thing
ticket | Fahrkarte f Fahrkarten | thing
pencil | Bleistift m Bleistifte | thing
camera | Kamera f Kameras | thing device
table | Tisch m Tische | furniture surface
chair | Stuhl m Stühle | furniture surface
bed | Bett n Betten | furniture surface
cupboard | Schrank m Schränke | furniture
shelf shelves | Regal n Regale | furniture surface
sofa | Sofa n Sofas | furniture surface
armchair | Sessel m Sessel | furniture surface
desk | Schreibtisch m Schreibtische | furniture surface
carpet | Teppich m Teppiche | furniture
mirror | Spiegel m Spiegel | furniture hanging
lamp | Lampe f Lampen | furniture device hanging
clock | Uhr f Uhren | furniture hanging
radio | Radio n Radios | device upright
computer | Computer m Computer | device
television | Fernseher m Fernseher | device
machine | Maschine f Maschinen | device
car | Auto n Autos | vehicle ride
bicycle | Fahrrad n Fahrräder | vehicle
bus | Bus m Busse | vehicle ride public
train | Zug m Züge | ride public
ship | Schiff n Schiffe | vehicle ride public
truck | Lastwagen m Lastwagen | vehicle ride
boat | Boot n Boote | vehicle
kitchen | Küche f Küchen | place room
garden | Garten m Gärten | place
house | Haus n Häuser | place building
school | Schule f Schulen | place building
office | Büro n Büros | place room
bedroom | Schlafzimmer n Schlafzimmer | place room
living room | Wohnzimmer n Wohnzimmer | place room
cellar | Keller m Keller | place room
station | Bahnhof m Bahnhöfe | place building
hotel | Hotel n Hotels | place building
church | Kirche f Kirchen | place building
museum | Museum n Museen | place building
theatre | Theater n Theater | place building
restaurant | Restaurant n Restaurants | place building
library | Bibliothek f Bibliotheken | place building
hospital | Krankenhaus n Krankenhäuser | place building
park | Park m Parks | place
forest | Wald m Wälder | place
village | Dorf n Dörfer | place
city | Stadt f Städte | place
shop | Laden m Läden | place building
bakery | Bäckerei f Bäckereien | place building
castle | Schloss n Schlösser | place building
door | Tür f Türen | opening
window | Fenster n Fenster | opening
gate | Tor n Tore | opening
drawer | Schublade f Schubladen | opening
tree | Baum m Bäume | plant
flower | Blume f Blumen | plant
rose | Rose f Rosen | plant
bush | Busch m Büsche | plant
picture | Bild n Bilder | art hanging
photo | Foto n Fotos | art hanging
film | Film m Filme | film
song | Lied n Lieder | song
question | Frage f Fragen | abstract
answer | Antwort f Antworten | abstract
idea | Idee f Ideen | abstract
problem | Problem n Probleme | abstract
plan | Plan m Pläne | abstract
exercise | Übung f Übungen | abstract
rule | Regel f Regeln | abstract
concert | Konzert n Konzerte | event
meeting | Besprechung f Besprechungen | event
party | Feier f Feiern | event
course | Kurs m Kurse | event
exhibition | Ausstellung f Ausstellungen | event
wedding | Hochzeit f Hochzeiten | event
lecture | Vortrag m Vorträge | event
exam | Prüfung f Prüfungen | event
"""

# Compounds: every modifier goes with every head of its row. English: two words; German: one word.
COMPOUND_TABLE = """
kitchen=Küchen garden=Garten office=Büro bedroom=Schlafzimmer hotel=Hotel | table chair lamp
kitchen=Küchen garden=Garten office=Büro hotel=Hotel cellar=Keller | door window
kitchen=Küchen office=Büro cellar=Keller bedroom=Schlafzimmer | cupboard shelf clock
apple=Apfel cherry=Kirsch orange=Orangen chocolate=Schokoladen | cake
apple=Apfel cherry=Kirsch orange=Orangen tomato=Tomaten | juice
tomato=Tomaten potato=Kartoffel cheese=Käse onion=Zwiebel | soup
tomato=Tomaten potato=Kartoffel cheese=Käse onion=Zwiebel | salad
wine=Wein beer=Bier water=Wasser milk=Milch | glass bottle
winter=Winter summer=Sommer | coat jacket dress hat
school=Schul garden=Garten | book
house=Haus cellar=Keller office=Büro hotel=Hotel | key
apple=Apfel cherry=Kirsch orange=Orangen | tree
"""

# Adjectives: English | German, comparative, superlative stem | classes. Longer English words compare with "more".
ADJECTIVE_TABLE = """
old | alt älter ältest | person animal text clothes thing furniture device vehicle ride place opening plant art song
new | neu neuer neuest | text clothes thing furniture device vehicle ride building opening art film song abstract
young | jung jünger jüngst | person animal
small | klein kleiner kleinst | animal thing furniture device vehicle place opening plant art clothes
big | groß größer größt | animal thing furniture vehicle ride place opening plant art
tall | groß größer größt | person
beautiful | schön schöner schönst | person animal text clothes thing furniture place plant art song
ugly | hässlich hässlicher hässlichst | clothes thing furniture building art
expensive | teuer teurer teuerst | clothes thing furniture device vehicle drink food art
cheap | billig billiger billigst | clothes thing furniture device vehicle drink food
heavy | schwer schwerer schwerst | thing furniture device
light | leicht leichter leichtest | thing
difficult | schwierig schwieriger schwierigst | abstract text
simple | einfach einfacher einfachst | abstract furniture clothes
important | wichtig wichtiger wichtigst | text abstract event
interesting | interessant interessanter interessantest | text film place abstract event
boring | langweilig langweiliger langweiligst | text film event
long | lang länger längst | text film song event clothes
short | kurz kürzer kürzest | text film song event clothes
good | gut besser best | text food drink film song abstract
fresh | frisch frischer frischest | food drink
warm | warm wärmer wärmst | clothes drink room baked dish
cold | kalt kälter kältest | drink room dish
clean | sauber sauberer sauberst | clothes thing room vehicle opening
dirty | schmutzig schmutziger schmutzigst | clothes thing room vehicle opening
red | rot - - | clothes thing furniture vehicle opening plant fruit
blue | blau - - | clothes thing furniture vehicle opening
green | grün - - | clothes thing furniture vehicle opening
white | weiß - - | clothes thing furniture vehicle opening animal
black | schwarz - - | clothes thing furniture vehicle opening animal
friendly | freundlich freundlicher freundlichst | person
clever | klug klüger klügst | person animal
rich | reich reicher reichst | person
poor | arm ärmer ärmst | person
tired | müde müder müdest | person animal
ill | krank - - | person animal
happy | glücklich glücklicher glücklichst | person
famous | berühmt berühmter berühmtest | person art film song building
strong | stark stärker stärkst | person animal
hungry | hungrig hungriger hungrigst | person animal
fast | schnell schneller schnellst | vehicle ride animal
quiet | ruhig ruhiger ruhigst | place person
modern | modern moderner modernst | furniture device building vehicle ride
dark | dunkel dunkler dunkelst | room clothes
bright | hell heller hellst | room clothes
"""

# Verbs: English base [past participle] (+particle) | German infinitive [er-form Präteritum participle] [flags].
# "an+rufen" is separable; "-" in the er-form means regular; "be" marks the Perfekt with sein; "sich" a reflexive.
# "state" verbs take no progressive.
VERB_TABLE = """
buy bought bought | kaufen
sell sold sold | verkaufen
read read read | lesen liest las gelesen
write wrote written | schreiben - schrieb geschrieben
eat ate eaten | essen isst aß gegessen
drink drank drunk | trinken - trank getrunken
cook | kochen
bake | backen backt backte gebacken
see saw seen | sehen sieht sah gesehen state
find found found | finden - fand gefunden state
look+for | suchen
look+at | an+sehen sieht sah gesehen
lose lost lost | verlieren - verlor verloren state
need | brauchen state
know knew known | kennen - kannte gekannt state
love | lieben state
visit | besuchen
invite | ein+laden lädt lud geladen
call | an+rufen - rief gerufen
pick+up | ab+holen
open | öffnen
close | schließen - schloss geschlossen
turn+on | ein+schalten
turn+off | aus+schalten
try+on tried tried | an+probieren
put+on put put | an+ziehen - zog gezogen
throw+away threw thrown | weg+werfen wirft warf geworfen
bring+along brought brought | mit+bringen - brachte gebracht
clean | putzen
wash | waschen wäscht wusch gewaschen
repair | reparieren
paint | malen
carry | tragen trägt trug getragen
forget forgot forgotten | vergessen vergisst vergaß vergessen state
understand understood understood | verstehen - verstand verstanden state
explain | erklären
tell told told | erzählen
show showed shown | zeigen
give gave given | geben gibt gab gegeben
send sent sent | schicken
bring brought brought | bringen - brachte gebracht
lend lent lent | leihen - lieh geliehen
recommend | empfehlen empfiehlt empfahl empfohlen
order | bestellen
use | benutzen
hear heard heard | hören state
sing sang sung | singen - sang gesungen
plant | pflanzen
water | gießen - goss gegossen
feed fed fed | füttern
meet met met | treffen trifft traf getroffen
greet | grüßen
wake+up woke woken | auf+wachen be state
get+up got got | auf+stehen - stand gestanden be
arrive | an+kommen - kam gekommen be
depart | ab+fahren fährt fuhr gefahren be
fall+asleep fell fallen | ein+schlafen schläft schlief geschlafen be state
come+back came come | zurück+kommen - kam gekommen be
take+place took taken | statt+finden - fand gefunden state
begin began begun | beginnen - begann begonnen state
help | helfen hilft half geholfen
thank | danken
belong+to | gehören state
trust | vertrauen state
listen+to | zu+hören
follow | folgen be
congratulate | gratulieren
wait | warten
think thought thought | denken - dachte gedacht
talk | sprechen spricht sprach gesprochen
dream | träumen
laugh | lachen
take+part took taken | teil+nehmen nimmt nahm genommen
remember | erinnern sich state
look+forward | freuen sich state
complain | beschweren sich
hurry hurried hurried | beeilen sich
rest | aus+ruhen sich
sleep slept slept | schlafen schläft schlief geschlafen
work | arbeiten
cry cried cried | weinen
dance | tanzen
swim swam swum | schwimmen - schwamm geschwommen be
travel travelled travelled | reisen be
run ran run | laufen läuft lief gelaufen be
go went gone | gehen - ging gegangen be
drive drove driven | fahren fährt fuhr gefahren be
fly flew flown | fliegen - flog geflogen be
come came come | kommen - kam gekommen be
stay stayed stayed | bleiben - blieb geblieben be
live | wohnen state
sit sat sat | sitzen - saß gesessen
stand stood stood | stehen - stand gestanden
lie lay lain | liegen - lag gelegen state
hang hung hung | hängen - hing gehangen state state
put put put | legen
place | stellen
play played played | spielen
bloom | blühen state
cost cost cost | kosten state
like | mögen mag mochte gemocht state
have had had | haben hat hatte gehabt state
be was been | sein ist war gewesen be state
know_that knew known | wissen weiß wusste gewusst state
say said said | sagen state
believe | glauben state
hope | hoffen state
ask | fragen state
try tried tried | versuchen state
forget_to forgot forgotten | vergessen vergisst vergaß vergessen state
decide | beschließen - beschloss beschlossen state
plan planned planned | planen state
"""

# What goes with what: verb | subject classes | complements | flags.
# Complements are "case:classes", "English/German/case:classes" for prepositions ("-" for none), or one of
# located (things: on the table), hung (above it), moved (onto it), place (in the garden), direction (to the
# station), city (to Berlin), origin (from Berlin). The flag "manner" allows an adverb like "slowly", "where" a
# place; "to" makes the English dative a phrase with "to" at the end.
FRAME_TABLE = """
buy | person | acc:food+clothes+thing+furniture+vehicle+device+text+art | where
bring+along | person | acc:drink |
sell | person | acc:food+clothes+furniture+vehicle+device+art+building | where
read | person | acc:text | where manner
write | person | acc:text | where manner
eat | person animal | acc:food | where manner
eat | person | acc:food |
drink | person | acc:drink | where manner
drink | person | acc:drink |
cook | person | acc:dish+potato | where
bake | person | acc:baked | where
see | person animal | acc:person+animal+building+vehicle+plant+film+ride |
find | person | acc:thing+animal+clothes+text+building | where
look+for | person | acc:thing+person+animal+text+clothes+building |
look+at | person | acc:art+building+plant+furniture+clothes |
lose | person | acc:thing+text+clothes |
need | person | acc:thing+device+clothes+vehicle+furniture+person+abstract |
know | person | acc:person+building+text+song+film+abstract |
love | person | acc:person+animal+food+song+city |
like | person | acc:food+drink+art+plant+animal+text+song+film |
see | person | acc:film+art |
have | person | acc:animal+vehicle+thing+clothes+furniture+device+abstract |
visit | person | acc:person+place+event |
invite | person | acc:person |
call | person | acc:person |
pick+up | person | acc:person+thing+text |
open | person | acc:opening+bottle+suitcase+bag | manner
close | person | acc:opening+suitcase+bag+book | manner
turn+on | person | acc:device |
turn+off | person | acc:device |
try+on | person | acc:clothes |
put+on | person | acc:clothes | manner
throw+away | person | acc:text+clothes+thing+device |
bring+along | person | acc:food+drink+thing+text+person |
clean | person | acc:room+opening+thing+vehicle | manner
wash | person | acc:clothes+vehicle+thing+fruit | manner
drive | ride | city |
repair | person | acc:device+vehicle+opening+furniture | manner
paint | person | acc:art+person+animal+building+plant | where
carry | person | acc:thing+furniture+device | manner
forget | person | acc:thing+text+clothes+abstract+event |
understand | person | acc:abstract+text+person+film |
understand | person | acc:abstract |
forget | person | acc:abstract |
use | person | acc:device+thing+vehicle |
hear | person | acc:song+concert+lecture+animal+person |
sing | person | acc:song | where
plant | person | acc:plant | where
water | person | acc:plant |
feed | person | acc:animal | where
meet | person | acc:person | where
greet | person | acc:person |
order | person | acc:food+drink+furniture+clothes+text | where
explain | person | dat:person acc:abstract | to
tell | person | dat:person acc:tale |
show | person | dat:person acc:text+art+building+room+thing+animal |
give | person | dat:person acc:thing+text+clothes+food+plant+drink |
send | person | dat:person acc:text+art+thing |
bring | person | dat:person acc:drink+thing+text+food |
lend | person | dat:person acc:vehicle+thing+text+clothes |
recommend | person | dat:person acc:text+film+food+building | to
help | person | dat:person | where
thank | person | dat:person |
belong+to | thing clothes vehicle building animal furniture device | dat:person |
trust | person | dat:person |
listen+to | person | dat:person |
follow | person animal | dat:person+animal+vehicle | manner
congratulate | person | dat:person |
wait | person | for/auf/acc:person+public+answer+text | where
think | person | of/an/acc:person+event |
think | person | of/an/acc:abstract |
talk | person | to/mit/dat:person | where
talk | person | about/über/acc:event+film+text+person |
talk | person | about/über/acc:abstract |
dream | person | of/von/dat:person+house+vehicle+animal+event |
laugh | person | about/über/acc:person+text+film+photo |
take+part | person | in/an/dat:event |
remember | person | -/an/acc:person+event+building+abstract+tale |
look+forward | person | to/auf/acc:event+gift+cake |
complain | person | about/über/acc:person+food+noise+room+event+device |
play | person animal | with/mit/dat:person+animal+ball | where
travel | person | with/mit/dat:kin |
travel | person | on/mit/dat:public |
live | person | with/bei/dat:kin |
hurry | person | |
rest | person | | where
sleep | person animal | | where
work | person | | where manner
cry | person | | where
laugh | person | |
dance | person | | where
swim | person animal | | manner
run | person animal | | where manner
get+up | person | | manner
wake+up | person animal | |
fall+asleep | person animal | | where
arrive | person ride | |
depart | ride | |
come+back | person | origin |
live | person | place |
stay | person | place |
sit | person | place |
go | person | direction |
run | person animal | direction |
drive | person | city |
travel | person | city |
fly | person | city |
come | person | origin |
lie | thing clothes text | located |
hang | hanging | hung |
stand | upright | located |
put | person | acc:thing+text+clothes moved |
place | person | acc:upright moved |
bloom | plant | |
begin | event film | |
take+place | event | |
"""


def words(text: str) -> list[str]:
    return text.split()


def word_pairs(text: str) -> list[Pair]:
    return [(en, de) for en, _, de in (pair.partition("=") for pair in text.split())]


MEN = words("Peter Paul Martin David Daniel Oliver Jan Simon Leon Robert")
WOMEN = words("Anna Maria Lena Julia Laura Sophie Emma Nina Clara Eva")
CITIES = word_pairs(
    "Berlin=Berlin Hamburg=Hamburg Bremen=Bremen Dresden=Dresden London=London Madrid=Madrid Paris=Paris Oslo=Oslo "
    "Munich=München Cologne=Köln Vienna=Wien Rome=Rom Prague=Prag"
)
WEEKDAYS = word_pairs(
    "Monday=Montag Tuesday=Dienstag Wednesday=Mittwoch "
    "Thursday=Donnerstag Friday=Freitag Saturday=Samstag Sunday=Sonntag"
)
MONTHS = word_pairs(
    "January=Januar February=Februar March=März April=April May=Mai June=Juni "
    "July=Juli August=August September=September October=Oktober November=November December=Dezember"
)
SEASONS = word_pairs("spring=Frühling summer=Sommer autumn=Herbst winter=Winter")
PAST_TIMES: Sequence[Pair] = [
    ("yesterday", "gestern"),
    ("last week", "letzte Woche"),
    ("last year", "letztes Jahr"),
    ("two days ago", "vor zwei Tagen"),
]
FUTURE_TIMES: Sequence[Pair] = [
    ("tomorrow", "morgen"),
    ("next week", "nächste Woche"),
    ("next year", "nächstes Jahr"),
    ("soon", "bald"),
]
PRESENT_TIMES: Sequence[Pair] = [
    ("today", "heute"),
    ("every day", "jeden Tag"),
    ("in the evening", "am Abend"),
    ("in the morning", "am Morgen"),
    ("at night", "in der Nacht"),
    ("at the weekend", "am Wochenende"),
]
FREQUENCIES = word_pairs("often=oft always=immer never=nie sometimes=manchmal rarely=selten")
MANNERS = word_pairs("slowly=langsam quickly=schnell carefully=vorsichtig quietly=leise")
# --------------------------------------------------------------------------------------------------------------------
# Inflection.
# --------------------------------------------------------------------------------------------------------------------

CASES = ("nom", "acc", "dat", "gen")

# Endings by case in the order of CASES; "p" is the plural of all genders.
DER_ENDINGS = {
    "m": ("er", "en", "em", "es"),
    "f": ("e", "e", "er", "er"),
    "n": ("es", "es", "em", "es"),
    "p": ("e", "e", "en", "er"),
}
EIN_ENDINGS = {**DER_ENDINGS, "m": ("", "en", "em", "es"), "n": ("", "", "em", "es")}
DEFINITE_ARTICLES = {
    "m": ("der", "den", "dem", "des"),
    "f": ("die", "die", "der", "der"),
    "n": ("das", "das", "dem", "des"),
    "p": ("die", "die", "den", "der"),
}
RELATIVE_PRONOUNS = {
    "m": ("der", "den", "dem", "dessen"),
    "f": ("die", "die", "der", "deren"),
    "n": ("das", "das", "dem", "dessen"),
    "p": ("die", "die", "denen", "deren"),
}
ADJECTIVE_ENDINGS = {
    "weak": {
        "m": ("e", "en", "en", "en"),
        "f": ("e", "e", "en", "en"),
        "n": ("e", "e", "en", "en"),
        "p": ("en", "en", "en", "en"),
    },
    "mixed": {
        "m": ("er", "en", "en", "en"),
        "f": ("e", "e", "en", "en"),
        "n": ("es", "es", "en", "en"),
        "p": ("en", "en", "en", "en"),
    },
    "strong": {
        "m": ("er", "en", "em", "en"),
        "f": ("e", "e", "er", "er"),
        "n": ("es", "es", "em", "en"),
        "p": ("e", "e", "en", "er"),
    },
}
CONTRACTIONS = {
    "in dem": "im",
    "in das": "ins",
    "an dem": "am",
    "an das": "ans",
    "zu dem": "zum",
    "zu der": "zur",
    "von dem": "vom",
    "bei dem": "beim",
}


@dataclass(frozen=True)
class Noun:
    en: str
    en_plural: str
    de: str
    gender: str
    de_plural: str
    weak: bool
    mass: bool
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Adjective:
    en: str
    de: str
    de_comparative: str
    de_superlative: str
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Verb:
    en: str
    en_past: str
    en_participle: str
    en_particle: str
    de: str  # infinitive without a separable prefix
    de_prefix: str
    de_er: str
    de_past: str
    de_participle: str  # with prefix
    perfect_with_sein: bool
    reflexive: bool
    state: bool


def english_plural(noun: str) -> str:
    if noun.endswith(("s", "sh", "ch", "x")) or noun in ("potato", "tomato"):
        return noun + "es"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + "s"


def english_third_person(verb: str) -> str:
    return {"have": "has", "be": "is", "do": "does", "go": "goes"}.get(verb) or english_plural(verb)


def english_past(verb: str) -> str:
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ied"
    return verb + ("d" if verb.endswith("e") else "ed")


def english_gerund(verb: str) -> str:
    if verb in ("swim", "run", "sit", "put", "get", "plan", "begin", "travel", "forget"):
        return verb + verb[-1] + "ing"
    if verb == "lie":
        return "lying"
    return (verb[:-1] if verb.endswith("e") and not verb.endswith("ee") and verb != "be" else verb) + "ing"


def english_article(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def english_degree(adjective: str, degree: str) -> str:
    """Comparative ("er") or superlative ("est")."""
    if adjective == "good":
        return {"er": "better", "est": "best"}[degree]
    long_words = words("beautiful expensive difficult important interesting boring famous tired modern")
    if adjective in long_words:
        return ("more " if degree == "er" else "most ") + adjective
    if adjective.endswith("y"):
        return adjective[:-1] + "i" + degree
    if adjective.endswith("e"):
        return adjective + degree[1:]
    return adjective + (adjective[-1] if adjective in ("big", "red") else "") + degree


def german_genitive(noun: Noun) -> str:
    word = noun.de
    if noun.gender == "f":
        return word
    if noun.weak:
        return german_oblique(noun)
    if word == "Bus":
        return "Busses"
    n_syllables = len(re.findall("[aeiouyäöü]+", word.lower()))
    if word.endswith(("Museum", "Hotel")) or word[-1] in "aeiouäöü":
        return word + "s"
    return word + ("es" if n_syllables == 1 or word.endswith(("s", "ß", "z", "sch", "st")) else "s")


def german_oblique(noun: Noun) -> str:
    """Accusative and dative singular, where only the n-declension changes."""
    if not noun.weak:
        return noun.de
    return noun.de + ("n" if noun.de.endswith(("e", "er", "ar")) else "en")


def german_noun(noun: Noun, case: str, plural: bool) -> str:
    if plural:
        return noun.de_plural + ("n" if case == "dat" and noun.de_plural[-1] not in "ns" else "")
    return {"nom": noun.de, "gen": german_genitive(noun)}.get(case) or german_oblique(noun)


def adjective_stem(adjective: str) -> str:
    """The form before an ending: teuer loses its second e, dunkel too."""
    if adjective.endswith("e"):
        return adjective[:-1]
    return {"teuer": "teur", "dunkel": "dunkl"}.get(adjective, adjective)


def german_adjective(stem: str, declension: str, gender: str, case: str) -> str:
    return adjective_stem(stem) + ADJECTIVE_ENDINGS[declension][gender][CASES.index(case)]


def contract(phrase: str) -> str:
    """Melt preposition and definite article: "in dem Garten" becomes "im Garten"."""
    for long_form, short_form in CONTRACTIONS.items():
        if phrase.startswith(long_form + " "):
            return short_form + phrase[len(long_form) :]
    return phrase


def english_number(number: int) -> str:
    small = words(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    )
    tens = words("twenty thirty forty fifty sixty seventy eighty ninety")
    if number < 20:
        return small[number]
    return tens[number // 10 - 2] + (f"-{small[number % 10]}" if number % 10 else "")


def german_number(number: int) -> str:
    small = words(
        "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
        "siebzehn achtzehn neunzehn"
    )
    tens = words("zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig")
    if number < 20:
        return small[number]
    unit = {0: "", 1: "einund"}.get(number % 10, small[number % 10] + "und")
    return unit + tens[number // 10 - 2]


def clock_time(hour: int, minute: int) -> Pair:
    """Hour 1 to 12; minute 0, 5, 10, 15, 20, 30, 40, 45, 50 or 55."""
    following = hour % 12 + 1
    if minute == 0:
        return f"{english_number(hour)} o'clock", ("ein" if hour == 1 else german_number(hour)) + " Uhr"
    if minute == 30:
        return f"half past {english_number(hour)}", f"halb {german_number(following)}"
    past = minute < 30
    amount = minute if past else 60 - minute
    en_amount = "quarter" if amount == 15 else english_number(amount)
    de_amount = "Viertel" if amount == 15 else german_number(amount)
    named = hour if past else following
    return (
        f"{en_amount} {'past' if past else 'to'} {english_number(named)}",
        f"{de_amount} {'nach' if past else 'vor'} {german_number(named)}",
    )


def needs_linking_e(stem: str) -> bool:
    return stem.endswith(("t", "d", "fn"))


def weak_past(infinitive: str) -> str:
    stem = verb_stem(infinitive)
    return stem + ("e" if needs_linking_e(stem) else "") + "te"


def weak_participle(infinitive: str) -> str:
    stem = verb_stem(infinitive)
    prefixed = stem.startswith(("be", "ver", "er", "ent", "gehör")) or infinitive.endswith("ieren")
    return ("" if prefixed else "ge") + stem + ("et" if needs_linking_e(stem) else "t")


def verb_stem(infinitive: str) -> str:
    return infinitive[:-2] if infinitive.endswith("en") else infinitive[:-1]


IRREGULAR_PRESENT = {
    "sein": ("bin", "bist", "ist", "sind"),
    "haben": ("habe", "hast", "hat", "haben"),
    "werden": ("werde", "wirst", "wird", "werden"),
    "wissen": ("weiß", "weißt", "weiß", "wissen"),
    "mögen": ("mag", "magst", "mag", "mögen"),
    "laden": ("lade", "lädst", "lädt", "laden"),
}


def german_present(verb: Verb) -> tuple[str, str, str, str]:
    """Forms for ich, du, er and wir; a separable prefix is left out."""
    if verb.de in IRREGULAR_PRESENT:
        return IRREGULAR_PRESENT[verb.de]
    root = verb.de_er[:-1]
    if needs_linking_e(verb_stem(verb.de)):
        du = root + "st"
    else:
        du = root + ("t" if root.endswith(("s", "ß", "z")) else "st")
    return verb_stem(verb.de) + "e", du, verb.de_er, verb.de


def german_past(form: str) -> tuple[str, str, str, str]:
    return form, form + "st", form, form + ("n" if form.endswith("e") else "en")


def german_zu_infinitive(verb: Verb) -> str:
    return f"{verb.de_prefix}zu{verb.de}" if verb.de_prefix else f"zu {verb.de}"


def german_imperative(verb: Verb) -> str:
    """Singular (du) form without prefix: vowel change e to i as in "lies", but none from a to ä."""
    stem = verb_stem(verb.de)
    root = verb.de_er[:-1]
    if root != stem and root + "e" != stem and "ä" not in root and not needs_linking_e(stem):
        return root
    return stem + ("e" if needs_linking_e(stem) or verb.de.endswith("ern") else "")


# --------------------------------------------------------------------------------------------------------------------
# Reading the tables.
# --------------------------------------------------------------------------------------------------------------------


def read_nouns() -> dict[str, Noun]:
    nouns: dict[str, Noun] = {}
    for line in NOUN_TABLE.strip().splitlines():
        english, german, classes = (part.strip() for part in line.split("|"))
        words = [english] if english == "living room" else english.split()
        de, gender, de_plural, *flags = german.split()
        nouns[words[0]] = Noun(
            en=words[0],
            en_plural=words[1] if len(words) > 1 else english_plural(words[0]),
            de=de,
            gender=gender,
            de_plural=de_plural,
            weak="weak" in flags,
            mass="mass" in flags,
            classes=tuple(classes.split()),
        )
    return nouns


def read_compounds(nouns: dict[str, Noun]) -> list[Noun]:
    compounds = []
    for line in COMPOUND_TABLE.strip().splitlines():
        modifiers, heads = line.split("|")
        for modifier in modifiers.split():
            en, de = modifier.split("=")
            for head in (nouns[name] for name in heads.split()):
                compounds.append(
                    replace(
                        head,
                        en=f"{en} {head.en}",
                        en_plural=f"{en} {head.en_plural}",
                        de=de + head.de.lower(),
                        de_plural=de + head.de_plural.lower() if not head.mass else "-",
                    )
                )
    return compounds


def read_adjectives() -> list[Adjective]:
    adjectives = []
    for line in ADJECTIVE_TABLE.strip().splitlines():
        english, german, classes = (part.strip() for part in line.split("|"))
        de, comparative, superlative = german.split()
        adjectives.append(Adjective(english, de, comparative, superlative, tuple(classes.split())))
    return adjectives


def read_verbs() -> dict[str, Verb]:
    verbs = {}
    for line in VERB_TABLE.strip().splitlines():
        english, german = (part.strip() for part in line.split("|"))
        key, *en_forms = english.split()
        base, _, particle = key.removesuffix("_that").removesuffix("_to").partition("+")
        infinitive, *rest = german.split()
        flags = [word for word in rest if word in ("be", "sich", "state")]
        forms = [word for word in rest if word not in flags]
        prefix, _, root = infinitive.rpartition("+")
        er_form, past, participle = forms or ("-", weak_past(root), weak_participle(root))
        stem = verb_stem(root)
        verbs[key] = Verb(
            en=base,
            en_past=en_forms[0] if en_forms else english_past(base),
            en_participle=en_forms[1] if en_forms else english_past(base),
            en_particle=particle,
            de=root,
            de_prefix=prefix,
            de_er=stem + ("et" if needs_linking_e(stem) else "t") if er_form == "-" else er_form,
            de_past=past,
            de_participle=prefix + participle,
            perfect_with_sein="be" in flags,
            reflexive="sich" in flags,
            state="state" in flags,
        )
    return verbs


NOUNS = read_nouns()
ALL_NOUNS = [*NOUNS.values(), *read_compounds(NOUNS)]
ADJECTIVES = read_adjectives()
VERBS = read_verbs()


# --------------------------------------------------------------------------------------------------------------------
# Phrases. Each value below holds both languages.
# --------------------------------------------------------------------------------------------------------------------


class Chance:
    """Random choices made from `random()` alone, the one method whose sequence no Python version changes."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._random.random() * len(options))]

    def happens(self, probability: float) -> bool:
        return self._random.random() < probability

    def pick_weighted(self, weights: dict[T, float]) -> T:
        point = self._random.random() * sum(weights.values())
        for option, weight in weights.items():
            point -= weight
            if point < 0:
                return option
        return list(weights)[-1]

    def shuffle(self, values: list[T]) -> None:
        for last in range(len(values) - 1, 0, -1):
            other = int(self._random.random() * (last + 1))
            values[last], values[other] = values[other], values[last]


@dataclass(frozen=True)
class Nominal:
    """A noun phrase or pronoun; `de` holds the wording in each of CASES."""

    en: str
    en_object: str
    de: tuple[str, ...]
    person: int = 3
    plural: bool = False
    gender: str = "m"  # "p" for plurals
    kind: str = "definite"  # or indefinite, name, pronoun
    animate: bool = False
    kein: tuple[str, ...] = ()  # the negated wording of an indefinite phrase
    heavy: bool = False  # holds a relative clause

    def in_case(self, case: str) -> str:
        return self.de[CASES.index(case)]

    @property
    def form(self) -> int:
        """Index into a verb's (ich, du, er, wir) forms."""
        return 3 if self.plural else self.person - 1

    @property
    def en_singular(self) -> bool:
        """Takes the English third person -s."""
        return self.person == 3 and not self.plural


def personal_pronoun(en: str, en_object: str, de: str, person: int, plural: bool = False, gender: str = "m") -> Nominal:
    forms = (*de.split(), "-")
    return Nominal(en, en_object, forms, person, plural, gender, kind="pronoun", animate=en != "it")


PRONOUNS = [
    personal_pronoun("I", "me", "ich mich mir", 1),
    personal_pronoun("you", "you", "du dich dir", 2),
    personal_pronoun("he", "him", "er ihn ihm", 3),
    personal_pronoun("she", "her", "sie sie ihr", 3, gender="f"),
    personal_pronoun("we", "us", "wir uns uns", 1, plural=True),
    personal_pronoun("they", "them", "sie sie ihnen", 3, plural=True, gender="p"),
]
IT = {
    "m": personal_pronoun("it", "it", "er ihn ihm", 3),
    "f": personal_pronoun("it", "it", "sie sie ihr", 3, gender="f"),
    "n": personal_pronoun("it", "it", "es es ihm", 3, gender="n"),
}
REFLEXIVES = {(1, False): "mich", (2, False): "dich", (1, True): "uns"}
POSSESSIVES = word_pairs("my=mein your=dein his=sein her=ihr our=unser their=ihr")


@dataclass(frozen=True)
class Frame:
    verb: Verb
    subject: tuple[str, ...]
    complements: tuple[str, ...]
    manner: bool
    where: bool
    dative_with_to: bool


@dataclass(frozen=True)
class VerbPhrase:
    """A verb with what follows it. German order: early, time, objects, adverb, nicht, manner, focus, tail, verb."""

    verb: Verb
    en: str = ""  # all that follows the English verb
    early: str = ""  # pronouns
    objects: str = ""  # definite objects
    focus: str = ""  # indefinite objects, also those with kein
    tail: str = ""  # prepositional phrases, predicates
    adverb: Pair = ("", "")
    nicht: bool = False
    manner: str = ""  # the German side alone; in English it stands last


@dataclass(frozen=True)
class Clause:
    subject: Nominal
    phrase: VerbPhrase
    tense: str
    negated: bool = False
    time: Pair = ("", "")


def read_frames() -> list[Frame]:
    frames = []
    for line in FRAME_TABLE.strip().splitlines():
        verb, subject, complements, flags = (part.strip() for part in line.split("|"))
        frames.append(
            Frame(
                verb=VERBS[verb],
                subject=tuple(subject.split()),
                complements=tuple(complements.split()),
                manner="manner" in flags,
                where="where" in flags,
                dative_with_to=flags == "to",
            )
        )
    return frames


FRAMES = read_frames()


def object_classes(frame: Frame) -> list[str]:
    return frame.complements[0].partition(":")[2].split("+")


def has_class(noun: Noun, classes: Sequence[str]) -> bool:
    """A class may also name a single noun, as "ball" in a frame."""
    return any(name in classes for name in (*noun.classes, noun.en))


def back_reference(antecedent: Nominal) -> Nominal:
    """The pronoun that refers back to `antecedent` in both languages."""
    if antecedent.kind == "pronoun":
        return antecedent
    if antecedent.plural:
        return PRONOUNS[5]
    if antecedent.animate and antecedent.gender != "n":
        return PRONOUNS[3 if antecedent.gender == "f" else 2]
    return IT[antecedent.gender]


def pick_noun(chance: Chance, classes: Sequence[str], n_forms: str = "any") -> Noun:
    simple = [noun for noun in NOUNS.values() if has_class(noun, classes) and not (n_forms == "count" and noun.mass)]
    compounds = [
        noun for noun in ALL_NOUNS[len(NOUNS) :] if has_class(noun, classes) and not (n_forms == "count" and noun.mass)
    ]
    return chance.pick(compounds if compounds and chance.happens(0.2) else simple)


def pick_adjective(chance: Chance, noun: Noun, gradable: bool = False) -> Adjective:
    fitting = [a for a in ADJECTIVES if has_class(noun, a.classes) and not (gradable and a.de_comparative == "-")]
    return chance.pick(fitting)


def has_adjective(noun: Noun) -> bool:
    return any(has_class(noun, a.classes) and a.de_comparative != "-" for a in ADJECTIVES)


@dataclass(frozen=True)
class Determiner:
    en: str
    de: tuple[str, ...]  # by case
    declension: str
    kind: str = "definite"
    possessor: str = ""  # a German genitive after the noun


def ein_word(stem: str, gender: str) -> tuple[str, ...]:
    return tuple(stem + ending for ending in EIN_ENDINGS[gender])


def der_word(stem: str, gender: str) -> tuple[str, ...]:
    return tuple(stem + ending for ending in DER_ENDINGS[gender])


NEVER_POSSESSED = ("man", "woman", "boy", "king", "queen")  # "seine Frau" is a wife


def pick_determiner(chance: Chance, noun: Noun, plural: bool, plain: bool) -> Determiner:
    """`plain` leaves out quantifiers and possessors, which negation does not combine with well."""
    gender = "p" if plural else noun.gender
    weights = {"the": 5.0, "a": 3.0, "my": 4.0 if "kin" in noun.classes else 1.5, "this": 1.0}
    if not plain:
        weights |= {"possessor": 0.8 if "person" not in noun.classes else 0.3}
        if plural:
            weights |= {"number": 1.5, "many": 0.8, "all": 0.6}
        elif not noun.mass:
            weights |= {"every": 0.4}
    if noun.en in NEVER_POSSESSED:
        weights = {kind: weight for kind, weight in weights.items() if kind not in ("my", "possessor")}
    choice = chance.pick_weighted(weights)
    if choice == "the":
        return Determiner("the", DEFINITE_ARTICLES[gender], "weak")
    if choice == "my":
        en, stem = chance.pick(POSSESSIVES)
        return Determiner(en, ein_word(stem, gender), "mixed")
    if choice == "this":
        return Determiner("these" if plural else "this", der_word("dies", gender), "weak")
    if choice == "every":
        return Determiner("every", der_word("jed", gender), "weak")
    if choice == "all":
        return Determiner("all", der_word("all", gender), "weak")
    if choice == "possessor":
        return pick_possessor(chance, gender)
    if choice == "many":
        return Determiner("many", der_word("viel", gender), "strong", "quantified")
    if choice == "number":
        number = 2 + int(chance.pick(range(98)) ** 2 / 98)
        return Determiner(english_number(number), (german_number(number),) * 4, "strong", "quantified")
    if plural or noun.mass:
        return Determiner("", ("",) * 4, "strong", "indefinite")
    return Determiner("a", ein_word("ein", gender), "mixed", "indefinite")


def pick_possessor(chance: Chance, gender: str) -> Determiner:
    if chance.happens(0.5):
        name = chance.pick(MEN + WOMEN)
        return Determiner(f"{name}'s", (f"{name}s",) * 4, "strong")
    owner = pick_noun(chance, ("person",))
    article = DEFINITE_ARTICLES[owner.gender][CASES.index("gen")]
    genitive = f"{article} {german_noun(owner, 'gen', plural=False)}"
    return Determiner(f"the {owner.en}'s", DEFINITE_ARTICLES[gender], "weak", possessor=genitive)


def join(*words: str) -> str:
    return " ".join(word for word in words if word)


def compose(
    noun: Noun, plural: bool, determiner: Determiner, adjectives: Sequence[Pair], relative: Pair = ("", "")
) -> Nominal:
    """`adjectives` are (English, German stem) pairs."""
    gender = "p" if plural else noun.gender
    en_core = join(*(en for en, _ in adjectives), noun.en_plural if plural else noun.en)
    en = english_article(en_core) if determiner.en == "a" else join(determiner.en, en_core)

    def wording(articles: Sequence[str], declension: str) -> tuple[str, ...]:
        return tuple(
            join(
                articles[index],
                *(german_adjective(stem, declension, gender, case) for _, stem in adjectives),
                german_noun(noun, case, plural),
                determiner.possessor,
                relative[1],
            )
            for index, case in enumerate(CASES)
        )

    indefinite = determiner.kind == "indefinite"
    en = join(en, relative[0])
    return Nominal(
        en=en,
        en_object=en,
        de=wording(determiner.de, determiner.declension),
        plural=plural,
        gender=gender,
        kind=determiner.kind,
        animate="person" in noun.classes,
        kein=wording(ein_word("kein", gender), "mixed") if indefinite else (),
        heavy=bool(relative[0]),
    )


def pick_noun_phrase(
    chance: Chance, classes: Sequence[str], plain: bool = False, depth: int = 0, noun: Noun | None = None
) -> Nominal:
    noun = noun or pick_noun(chance, classes)
    plural = not noun.mass and chance.happens(0.22)
    determiner = pick_determiner(chance, noun, plural, plain)
    n_adjectives = chance.pick_weighted({0: 0.62, 1: 0.33, 2: 0.05}) if has_adjective(noun) else 0
    adjectives: list[Pair] = []
    for _ in range(n_adjectives):
        adjective = pick_adjective(chance, noun)
        if all(adjective.de != stem for _, stem in adjectives):
            adjectives.append((adjective.en, adjective.de))
    relative = ("", "")
    if depth == 0 and not plain and not determiner.possessor and chance.happens(0.09):
        relative = pick_relative_clause(chance, noun, plural)
    return compose(noun, plural, determiner, adjectives, relative)


def name_phrase(name: str, woman: bool) -> Nominal:
    return Nominal(name, name, (name,) * 3 + (f"{name}s",), gender="f" if woman else "m", kind="name", animate=True)


def pick_name(chance: Chance) -> Nominal:
    woman = chance.happens(0.5)
    return name_phrase(chance.pick(WOMEN if woman else MEN), woman)


def pick_subject(chance: Chance, classes: Sequence[str], plain: bool = False, depth: int = 0) -> Nominal:
    if "person" in classes:
        choice = chance.pick_weighted({"pronoun": 0.35, "name": 0.2, "noun": 0.45})
        if choice == "pronoun":
            return chance.pick(PRONOUNS)
        if choice == "name":
            return pick_name(chance)
    return pick_noun_phrase(chance, classes, plain, depth)


def pick_object(chance: Chance, classes: Sequence[str], subject: Nominal, plain: bool, depth: int) -> Nominal:
    if "city" in classes and chance.happens(0.2):
        en, de = chance.pick(CITIES)
        return Nominal(en, en, (de,) * 4, gender="n", kind="name")
    if "person" in classes and "kin" not in classes:
        choice = chance.pick_weighted({"pronoun": 0.2, "name": 0.15, "noun": 0.65})
        if choice == "pronoun":
            others = [p for p in PRONOUNS if p.person == 3 or p.person != subject.person]
            return chance.pick(others)
        if choice == "name":
            return pick_name(chance)
    return pick_noun_phrase(chance, classes, plain, depth)


def prepositional(en: str, de: str, case: str, nominal: Nominal) -> Pair:
    return f"{en} {nominal.en_object}", contract(f"{de} {nominal.in_case(case)}")


def pick_where(chance: Chance) -> Pair:
    if chance.happens(0.2):
        en, de = chance.pick(CITIES)
        return f"in {en}", f"in {de}"
    return prepositional("in", "in", "dat", pick_noun_phrase(chance, ("place",), plain=True, depth=1))


def pick_direction(chance: Chance) -> Pair:
    choice = chance.pick_weighted({"into": 0.45, "to": 0.45, "home": 0.1})
    if choice == "home":
        return "home", "nach Hause"
    if choice == "into":
        place = pick_noun_phrase(chance, ("place",), plain=True, depth=1)
        return prepositional("into", "in", "acc", place)
    return prepositional("to", "zu", "dat", pick_noun_phrase(chance, ("building",), plain=True, depth=1))


def pick_spot(chance: Chance, case: str) -> Pair:
    en, de = chance.pick(
        [("on", "auf"), ("under", "unter"), ("next to", "neben"), ("in front of", "vor"), ("behind", "hinter")]
    )
    classes = ("surface",) if en in ("on", "under") else ("furniture", "opening")
    return prepositional(en, de, case, pick_noun_phrase(chance, classes, plain=True, depth=1))


def pick_hook(chance: Chance) -> Pair:
    if chance.happens(0.4):
        return "on the wall", "an der Wand"
    above = pick_noun_phrase(chance, ("surface", "opening"), plain=True, depth=1)
    return prepositional("above", "über", "dat", above)


def pick_city(chance: Chance, en: str, de: str) -> Pair:
    city = chance.pick(CITIES)
    return f"{en} {city[0]}", f"{de} {city[1]}"


# --------------------------------------------------------------------------------------------------------------------
# Verb phrases.
# --------------------------------------------------------------------------------------------------------------------

# Particles that stay before a pronoun: "looks at him", but "picks him up".
PREPOSITION_PARTICLES = ("to", "at", "for")


def add_object(phrase: VerbPhrase, nominal: Nominal, case: str, negated: bool, second: bool = False) -> VerbPhrase:
    particle = phrase.verb.en_particle
    if second:
        en = join(phrase.en, nominal.en_object)
    elif nominal.kind == "pronoun" and particle not in PREPOSITION_PARTICLES:
        en = join(nominal.en_object, particle)
    else:
        en = join(particle, nominal.en_object)
    phrase = replace(phrase, en=en)
    if nominal.kind == "pronoun":
        return replace(phrase, early=join(phrase.early, nominal.in_case(case)))
    if negated and nominal.kein:
        wording = nominal.kein[CASES.index(case)]
        return replace(phrase, focus=join(phrase.focus, wording), nicht=False)
    if nominal.kind in ("indefinite", "quantified") or phrase.focus:
        return replace(phrase, focus=join(phrase.focus, nominal.in_case(case)))
    return replace(phrase, objects=join(phrase.objects, nominal.in_case(case)))


def add_tail(phrase: VerbPhrase, pair: Pair) -> VerbPhrase:
    return replace(phrase, en=join(phrase.en, pair[0]), tail=join(phrase.tail, pair[1]))


SPECIAL_COMPLEMENTS: dict[str, Callable[[Chance], Pair]] = {
    "located": lambda chance: pick_spot(chance, "dat"),
    "moved": lambda chance: pick_spot(chance, "acc"),
    "hung": pick_hook,
    "place": pick_where,
    "direction": pick_direction,
    "city": lambda chance: pick_city(chance, "to", "nach"),
    "origin": lambda chance: pick_city(chance, "from", "aus"),
}


def pick_verb_phrase(
    chance: Chance,
    frame: Frame,
    subject: Nominal,
    negated: bool = False,
    gap: int = -1,
    depth: int = 0,
    adjuncts: bool = True,
    fixed: Nominal | None = None,
) -> VerbPhrase:
    """Fill a frame's complements.

    Args:
        gap: index of a complement to leave out, for a relative clause or a question about it.
        fixed: what to use as the first complement, instead of a random phrase.
    """
    reflexive = REFLEXIVES.get((subject.person, subject.plural), "sich") if frame.verb.reflexive else ""
    phrase = VerbPhrase(frame.verb, en=frame.verb.en_particle, early=reflexive, nicht=negated)
    to_phrase = ""
    for index, complement in enumerate(frame.complements):
        if index == gap:
            continue
        if complement in SPECIAL_COMPLEMENTS:
            phrase = add_tail(phrase, SPECIAL_COMPLEMENTS[complement](chance))
            continue
        case, _, classes = complement.partition(":")
        last = index == len(frame.complements) - 1
        plain = negated or not last
        nominal = fixed if fixed and index == 0 else pick_object(chance, classes.split("+"), subject, plain, depth)
        if "/" in case:
            en, de, case = case.split("/")
            if negated and nominal.kein:
                nominal = replace(nominal, kein=())
            phrase = add_tail(phrase, prepositional(en, de, case, nominal))
            phrase = replace(phrase, en=phrase.en.replace("- ", "", 1) if en == "-" else phrase.en)
            continue
        # Only the accusative of a double object takes kein, and "her" must not read as a possessive.
        if case == "dat" and not last:
            while nominal.kind == "indefinite" or nominal.en_object == "her" or nominal.heavy:
                nominal = pick_object(chance, classes.split("+"), subject, True, 1)
        if frame.dative_with_to and case == "dat":
            to_phrase = f"to {nominal.en_object}"
            nominal = replace(nominal, en_object="")
        phrase = add_object(phrase, nominal, case, negated, second=index > 0)
    phrase = replace(phrase, en=join(phrase.en, to_phrase))
    if adjuncts and frame.where and chance.happens(0.25):
        phrase = add_tail(phrase, pick_where(chance))
    elif adjuncts and frame.manner and not negated and chance.happens(0.25):
        en, de = chance.pick(MANNERS)
        phrase = replace(phrase, en=join(phrase.en, en), manner=de)
    return phrase


def frame_index(chance: Chance, noun: Noun, relation: str) -> tuple[Frame, int] | None:
    """A frame where `noun` fits the relation (nom, acc, dat or prep) and the index of that complement."""
    options: list[tuple[Frame, int]] = []
    for frame in FRAMES:
        if relation == "nom":
            if has_class(noun, frame.subject):
                options.append((frame, -1))
            continue
        for index, complement in enumerate(frame.complements):
            case, _, classes = complement.partition(":")
            wanted = "prep" if "/" in case else case
            # "the man whom she gives a book" is doubtful English.
            double = case == "dat" and index + 1 < len(frame.complements)
            if wanted == relation and has_class(noun, classes.split("+")) and not double:
                options.append((frame, index))
    return chance.pick(options) if options else None


def pick_relative_clause(chance: Chance, noun: Noun, plural: bool) -> Pair:
    relation = chance.pick_weighted({"nom": 0.4, "acc": 0.3, "dat": 0.08, "prep": 0.13, "gen": 0.11})
    if relation == "gen":
        return pick_whose_clause(chance, noun, plural) if "person" in noun.classes else ("", "")
    found = frame_index(chance, noun, relation)
    if found is None:
        return "", ""
    frame, index = found
    gender = "p" if plural else noun.gender
    pronouns = RELATIVE_PRONOUNS[gender]
    person = "person" in noun.classes
    if relation == "nom":
        subject = Nominal("who" if person else "that", "", pronouns, plural=plural, gender=gender)
        clause = pick_clause(chance, frame, subject, depth=1, simple=True)
        return english_statement(clause), f", {german_subordinate(clause)} ,"
    subject = pick_subject(chance, frame.subject, plain=True, depth=1)
    clause = pick_clause(chance, frame, subject, depth=1, gap=index, simple=True)
    case = frame.complements[index].partition(":")[0]
    if relation == "prep":
        en_preposition, preposition, case = case.split("/")
        en = join("" if en_preposition == "-" else en_preposition, "whom" if person else "which")
        de = f"{preposition} {pronouns[CASES.index(case)]}"
    else:
        en, de = "whom" if person else "that", pronouns[CASES.index(case)]
    return f"{en} {english_statement(clause)}", f", {de} {german_subordinate(clause)} ,"


def pick_whose_clause(chance: Chance, owner: Noun, plural: bool) -> Pair:
    kin = pick_noun(chance, ("kin",))
    pronoun = RELATIVE_PRONOUNS["p" if plural else owner.gender][CASES.index("gen")]
    subject = Nominal(f"whose {kin.en}", "", (f"{pronoun} {kin.de}",) * 4, gender=kin.gender, animate=True)
    clause = pick_clause(chance, pick_frame(chance, "person"), subject, depth=1, simple=True)
    return english_statement(clause), f", {german_subordinate(clause)} ,"


# --------------------------------------------------------------------------------------------------------------------
# Clauses.
# --------------------------------------------------------------------------------------------------------------------

# English modal (finite form is found by english_finite) and the German forms for ich, du, er, wir.
MODALS = {
    "can": ("kann", "kannst", "kann", "können"),
    "could": ("konnte", "konntest", "konnte", "konnten"),
    "may": ("darf", "darfst", "darf", "dürfen"),
    "should": ("sollte", "solltest", "sollte", "sollten"),
    "want to": ("will", "willst", "will", "wollen"),
    "wanted to": ("wollte", "wolltest", "wollte", "wollten"),
    "have to": ("muss", "musst", "muss", "müssen"),
    "had to": ("musste", "musstest", "musste", "mussten"),
    "would like to": ("möchte", "möchtest", "möchte", "möchten"),
}
SEMI_MODALS = {"want to": "want", "wanted to": "want", "have to": "have", "had to": "have"}
WUERDE = ("würde", "würdest", "würde", "würden")


def form_of_be(subject: Nominal, past: bool) -> str:
    if past:
        return "was" if not subject.plural and subject.person != 2 else "were"
    if subject.en_singular:
        return "is"
    return "am" if subject.person == 1 and not subject.plural else "are"


def form_of(verb: str, subject: Nominal) -> str:
    return english_third_person(verb) if subject.en_singular else verb


def english_finite(clause: Clause, inverted: bool) -> Pair:
    """The auxiliary ("" where there is none) and what follows subject, "not" and adverb."""
    verb, subject, tense = clause.phrase.verb, clause.subject, clause.tense
    support = inverted or clause.negated
    if tense in ("present", "past"):
        if verb.en == "be":
            return form_of_be(subject, tense == "past"), ""
        if support:
            return "did" if tense == "past" else form_of("do", subject), verb.en
        return "", verb.en_past if tense == "past" else form_of(verb.en, subject)
    if tense in SEMI_MODALS:
        base, past = SEMI_MODALS[tense], tense in ("wanted to", "had to")
        if support:
            return "did" if past else form_of("do", subject), f"{base} to {verb.en}"
        return "", (tense if past else f"{form_of(base, subject)} to") + f" {verb.en}"
    if tense == "would like to":
        return "would", f"like to {verb.en}"
    if tense.startswith("passive"):
        return form_of_be(subject, tense == "passive past"), verb.en_participle
    return {
        "perfect": (form_of("have", subject), verb.en_participle),
        "pluperfect": ("had", verb.en_participle),
        "future": ("will", verb.en),
        "progressive": (form_of_be(subject, False), english_gerund(verb.en)),
        "conditional": ("would", verb.en),
    }.get(tense, (tense, verb.en))


def negate_auxiliary(auxiliary: str) -> str:
    return "cannot" if auxiliary == "can" else f"{auxiliary} not"


def english_statement(clause: Clause) -> str:
    auxiliary, main = english_finite(clause, inverted=False)
    if clause.negated:
        auxiliary = negate_auxiliary(auxiliary)
    return join(clause.subject.en, auxiliary, clause.phrase.adverb[0], main, clause.phrase.en, clause.time[0])


def english_question(clause: Clause) -> str:
    """Verb before subject, as after a question word."""
    auxiliary, main = english_finite(clause, inverted=True)
    return join(auxiliary, clause.subject.en, clause.phrase.adverb[0], main, clause.phrase.en, clause.time[0])


def german_verbs(clause: Clause) -> Pair:
    """The finite verb and the verbal end of the clause (prefix, participle or infinitive)."""
    verb, form, tense = clause.phrase.verb, clause.subject.form, clause.tense
    infinitive = verb.de_prefix + verb.de
    if tense in ("present", "progressive"):
        return german_present(verb)[form], verb.de_prefix
    if tense == "past":
        return german_past(verb.de_past)[form], verb.de_prefix
    if tense == "perfect":
        return IRREGULAR_PRESENT["sein" if verb.perfect_with_sein else "haben"][form], verb.de_participle
    if tense == "pluperfect":
        return german_past("war" if verb.perfect_with_sein else "hatte")[form], verb.de_participle
    if tense == "passive present":
        return IRREGULAR_PRESENT["werden"][form], verb.de_participle
    if tense == "passive past":
        return german_past("wurde")[form], verb.de_participle
    if tense == "future":
        return IRREGULAR_PRESENT["werden"][form], infinitive
    return (WUERDE if tense == "conditional" else MODALS[tense])[form], infinitive


def german_middle(phrase: VerbPhrase, time: str = "") -> str:
    nicht = "nicht" if phrase.nicht else ""
    return join(phrase.early, time, phrase.objects, phrase.adverb[1], nicht, phrase.manner, phrase.focus, phrase.tail)


def middle_of(clause: Clause) -> str:
    time = "gerade" if clause.tense == "progressive" else clause.time[1]
    return german_middle(clause.phrase, time)


def german_statement(clause: Clause, first: str = "") -> str:
    """Verb second: the subject, or `first` if given, stands before the finite verb."""
    if first:
        return join(first, german_question(clause))
    finite, end = german_verbs(clause)
    return join(clause.subject.in_case("nom"), finite, middle_of(clause), end)


def german_question(clause: Clause) -> str:
    """Verb first, as also after a fronted phrase. Only a pronoun may stand between the verb and "sich"."""
    finite, end = german_verbs(clause)
    subject = clause.subject.in_case("nom")
    if clause.phrase.verb.reflexive and clause.subject.kind != "pronoun":
        reflexive = clause.phrase.early
        clause = replace(clause, phrase=replace(clause.phrase, early=""))
        return join(finite, reflexive, subject, middle_of(clause), end)
    return join(finite, subject, middle_of(clause), end)


def german_subordinate(clause: Clause) -> str:
    """Verb final. A relative pronoun in the accusative or dative is put before by the caller."""
    finite, end = german_verbs(clause)
    verbs = end + finite if clause.tense in ("present", "past", "progressive") else f"{end} {finite}"
    return join(clause.subject.in_case("nom"), middle_of(clause), verbs)


def german_infinitive(phrase: VerbPhrase) -> str:
    return join(german_middle(phrase), german_zu_infinitive(phrase.verb))


PRESENT_LIKE = ("present", "progressive", "can", "may", "should", "want to", "have to", "would like to")
PAST_LIKE = ("past", "could", "wanted to", "had to")


def pick_tense(chance: Chance, frame: Frame, subject: Nominal, negated: bool, group: str = "any") -> str:
    weights = {"present": 0.3, "past": 0.24, "perfect": 0.14, "future": 0.08}
    weights |= dict.fromkeys(("want to", "have to", "can", "should"), 0.04)
    weights |= dict.fromkeys(("may", "could", "wanted to", "had to", "would like to"), 0.025)
    if not negated and not frame.verb.state:
        weights["progressive"] = 0.07
    if group == "present":
        weights = {tense: weight for tense, weight in weights.items() if tense in PRESENT_LIKE}
    if group == "past":
        weights = {tense: weight for tense, weight in weights.items() if tense in PAST_LIKE}
    if not subject.animate:
        weights = {t: w for t, w in weights.items() if t in ("present", "past", "perfect", "future", "progressive")}
    if frame.verb.de in ("gehören", "haben", "mögen", "kennen", "lieben"):
        weights = {t: w for t, w in weights.items() if t in ("present", "past")}
        if subject.person == 2:
            return "present"
    elif frame.verb.state and frame.verb.de != "vergessen":
        weights = {t: w for t, w in weights.items() if t in ("present", "past", "perfect", "future")}
    if subject.person == 2:
        weights.pop("past", None)  # "du lasest" is bookish
    if frame.verb.en_past == frame.verb.en and not negated and not subject.en_singular:
        weights.pop("past", None)  # "they read" must mean the present
        weights.pop("present", None)
    return chance.pick_weighted(weights or {"could": 1.0})


def pick_time(chance: Chance, tense: str, clock: bool = True) -> Pair:
    if tense in ("past", "wanted to", "had to", "could"):
        choice = chance.pick_weighted({"plain": 0.4, "weekday": 0.2, "clock": 0.15, "month": 0.25})
        plain = PAST_TIMES
    elif tense in ("present", "have to", "can", "may"):
        choice = chance.pick_weighted({"plain": 0.5, "clock": 0.15, "month": 0.3})
        plain = PRESENT_TIMES
    elif tense in ("future", "want to", "should", "would like to"):
        choice = chance.pick_weighted({"plain": 0.5, "weekday": 0.25, "clock": 0.15, "month": 0.1})
        plain = FUTURE_TIMES
    else:
        return "", ""
    if choice == "plain" or (choice == "clock" and not clock):
        return chance.pick(plain)
    if choice == "weekday":
        en, de = chance.pick(WEEKDAYS)
        if clock and chance.happens(0.3):
            clock_en, clock_de = pick_clock(chance)
            return f"on {en} at {clock_en}", f"am {de} um {clock_de}"
        return f"on {en}", f"am {de}"
    if choice == "month":
        en, de = chance.pick([*MONTHS, *SEASONS])
        return f"in {en}", f"im {de}"
    en, de = pick_clock(chance)
    return f"at {en}", f"um {de}"


def has_clock_time(verb: Verb) -> bool:
    return verb.en_particle in ("up", "asleep", "place") or verb.en == "begin" or not (verb.state or verb.en == "live")


def pick_clock(chance: Chance) -> Pair:
    return clock_time(1 + chance.pick(range(12)), chance.pick((0, 0, 0, 5, 10, 15, 20, 30, 30, 30, 40, 45, 50, 55)))


def pick_frame(chance: Chance, subject_class: str = "", complement: str = "") -> Frame:
    options = [
        frame
        for frame in FRAMES
        if (not subject_class or subject_class in frame.subject)
        and (not complement or any(part.startswith(complement) for part in frame.complements))
    ]
    return chance.pick(options)


def pick_clause(
    chance: Chance,
    frame: Frame | None = None,
    subject: Nominal | None = None,
    *,
    depth: int = 0,
    gap: int = -1,
    group: str = "any",
    simple: bool = False,
    affirmative: bool = False,
    fixed: Nominal | None = None,
) -> Clause:
    """A random clause.

    Args:
        depth: 0 allows relative clauses in its noun phrases.
        group: "present" or "past" restricts the tense.
        simple: no negation, no time and no place.
    """
    frame = frame or pick_frame(chance, "person" if subject else "")
    negated = not simple and not affirmative and chance.happens(0.17)
    subject = subject or pick_subject(chance, frame.subject, plain=negated, depth=depth)
    phrase = pick_verb_phrase(chance, frame, subject, negated, gap, depth, adjuncts=not simple, fixed=fixed)
    tense = pick_tense(chance, frame, subject, negated, group)
    time = ("", "")
    if not simple and chance.happens(0.4):
        time = pick_time(chance, tense, clock=has_clock_time(frame.verb))
    if not negated and not time[0] and tense in ("present", "past", "perfect") and chance.happens(0.15):
        phrase = replace(phrase, adverb=chance.pick(FREQUENCIES))
    return Clause(subject, phrase, tense, negated, time)


def predicate(subject: Nominal, adjective: Adjective, tense: str = "present", degree: str = "") -> Clause:
    if adjective.de_comparative == "-":
        degree = ""  # colours, and "ill"
    phrase = VerbPhrase(VERBS["be"], en=join(degree, adjective.en), tail=join(DEGREES.get(degree, ""), adjective.de))
    return Clause(subject, phrase, tense)


DEGREES = {"": "", "very": "sehr", "too": "zu", "so": "so"}


# --------------------------------------------------------------------------------------------------------------------
# Sentences. A template returns English and German with loose commas; `finish` tidies them.
# --------------------------------------------------------------------------------------------------------------------

Template = Callable[[Chance], Pair]
WHO = Nominal("who", "", ("wer", "wen", "wem", "wessen"), animate=True)
# States that can be a reason for something.
PERSON_ADJECTIVES = [
    adjective
    for adjective in ADJECTIVES
    if adjective.en in words("young friendly clever rich poor tired ill happy strong hungry")
]
ACTIVITIES = [frame for frame in FRAMES if not frame.verb.state and "person" in frame.subject]
# Frames with a direct object alone, so that a pronoun can take it up again.
OBJECT_FRAMES = [
    frame
    for frame in FRAMES
    if len(frame.complements) == 1 and frame.complements[0].startswith("acc:") and "person" in frame.subject
]
NOT_FOR_PRONOUNS = ("have", "lose", "forget", "need")  # having or losing a thing needs no reason


def statement(clause: Clause, end: str = " .") -> Pair:
    return english_statement(clause) + end, german_statement(clause) + end


def ask(clause: Clause, word: Pair = ("", "")) -> Pair:
    return f"{word[0]} {english_question(clause)} ?", f"{word[1]} {german_question(clause)} ?"


def subordinate(clause: Clause, conjunction: Pair) -> Pair:
    return f"{conjunction[0]} {english_statement(clause)}", f"{conjunction[1]} {german_subordinate(clause)}"


def main_and_subordinate(main: Clause, sub: Clause, conjunction: Pair, sub_first: bool) -> Pair:
    en_sub, de_sub = subordinate(sub, conjunction)
    if sub_first:
        return f"{en_sub} , {english_statement(main)} .", f"{de_sub} , {german_question(main)} ."
    return f"{english_statement(main)} {en_sub} .", f"{german_statement(main)} , {de_sub} ."


def simple_statement(chance: Chance) -> Pair:
    return statement(pick_clause(chance))


def fronted_time(chance: Chance) -> Pair:
    clause = without_adverb(pick_clause(chance, depth=1))
    tense = "future" if clause.tense == "progressive" else clause.tense
    clock = has_clock_time(clause.phrase.verb)
    time = pick_time(chance, tense, clock)
    while not time[0]:
        tense = chance.pick(("future", "present", "could"))
        if clause.phrase.verb.en_past == clause.phrase.verb.en:
            tense = "future"
        time = pick_time(chance, tense, clock)
    clause = replace(clause, tense=tense, time=("", ""))
    return f"{time[0]} {english_statement(clause)} .", german_statement(clause, first=time[1]) + " ."


def fronted_place(chance: Chance) -> Pair:
    frame = chance.pick([frame for frame in FRAMES if frame.where and "place" not in frame.complements])
    subject = pick_subject(chance, frame.subject, depth=1)
    phrase = pick_verb_phrase(chance, frame, subject, depth=1, adjuncts=False)
    clause = Clause(subject, phrase, pick_tense(chance, frame, subject, negated=False))
    en, de = pick_where(chance)
    return f"{en} {english_statement(clause)} .", german_statement(clause, first=de) + " ."


def yes_no_question(chance: Chance) -> Pair:
    return ask(pick_clause(chance, affirmative=True, depth=1))


def who_question(chance: Chance) -> Pair:
    clause = pick_clause(chance, pick_frame(chance, "person"), WHO, affirmative=True)
    return statement(clause, " ?")


def object_question(chance: Chance) -> Pair:
    case = chance.pick(("acc", "acc", "dat"))
    frame = chance.pick([f for f in FRAMES if f.complements and f.complements[-1].startswith(case + ":")])
    index = len(frame.complements) - 1
    person = "person" in frame.complements[index].partition(":")[2].split("+")
    clause = pick_clause(chance, frame, gap=index, affirmative=True, depth=1)
    word = ("whom", WHO.in_case(case)) if person else ("what", "was")
    return ask(clause, word)


def preposition_question(chance: Chance) -> Pair:
    options = [f for f in FRAMES if len(f.complements) == 1 and "person" in object_classes(f)]
    frame = chance.pick([f for f in options if "/" in f.complements[0] and not f.complements[0].startswith("-")])
    en, de, case = frame.complements[0].partition(":")[0].split("/")
    clause = pick_clause(chance, frame, gap=0, affirmative=True, depth=1)
    return ask(clause, (f"{en} whom", f"{de} {WHO.in_case(case)}"))


def where_question(chance: Chance) -> Pair:
    question_words = {
        "place": "wo",
        "located": "wo",
        "hung": "wo",
        "direction": "wohin",
        "city": "wohin",
        "moved": "wohin",
    }
    frame = chance.pick([f for f in FRAMES if f.complements and f.complements[-1] in question_words])
    clause = pick_clause(chance, frame, gap=len(frame.complements) - 1, affirmative=True, depth=1)
    return ask(clause, ("where", question_words[frame.complements[-1]]))


def origin_question(chance: Chance) -> Pair:
    clause = pick_clause(chance, pick_frame(chance, "", "origin"), gap=0, simple=True, depth=1)
    clause = replace(clause, phrase=replace(clause.phrase, en=join(clause.phrase.en, "from")))
    return ask(clause, ("where", "woher"))


def adverb_question(chance: Chance) -> Pair:
    word = chance.pick([("why", "warum"), ("when", "wann"), ("how often", "wie oft")])
    return ask(without_adverb(pick_clause(chance, simple=True, depth=1)), word)


def without_adverb(clause: Clause) -> Clause:
    return replace(clause, phrase=replace(clause.phrase, adverb=("", "")))


def which_question(chance: Chance) -> Pair:
    frame = chance.pick(OBJECT_FRAMES)
    noun = pick_noun(chance, object_classes(frame))
    plural = not noun.mass and chance.happens(0.3)
    gender = "p" if plural else noun.gender
    which = compose(noun, plural, Determiner("which", der_word("welch", gender), "weak"), [])
    clause = pick_clause(chance, frame, gap=0, affirmative=True, depth=1)
    return ask(clause, (which.en, which.in_case("acc")))


def how_many_question(chance: Chance) -> Pair:
    frame = chance.pick(OBJECT_FRAMES)
    noun = pick_noun(chance, object_classes(frame))
    if noun.mass:
        return simple_statement(chance)
    many = compose(noun, True, Determiner("how many", ("wie viele",) * 4, "strong"), [])
    clause = pick_clause(chance, frame, gap=0, simple=True, depth=1)
    return ask(without_adverb(clause), (many.en, many.in_case("acc")))


def can_be_person_pronoun(nominal: Nominal) -> bool:
    """False for things and for the child, whose "it" could also mean an object of the clause."""
    return nominal.animate and nominal.gender != "n"


def subject_again(chance: Chance, clause: Clause) -> Nominal | None:
    """The pronoun for the clause's subject, or nothing: then the next clause gets a subject of its own."""
    return back_reference(clause.subject) if can_be_person_pronoun(clause.subject) and chance.happens(0.6) else None


def linked_clauses(chance: Chance, conjunctions: Sequence[tuple[Pair, str]], first_probability: float) -> Pair:
    """Main and subordinate clause; a conjunction comes with the tense group that it needs ("any" for a random one)."""
    conjunction, group = chance.pick(conjunctions)
    group = chance.pick(("present", "past")) if group == "any" else group
    first = pick_clause(chance, depth=1, group=group)
    again = subject_again(chance, first)
    frame = pick_frame(chance, "person") if again else None
    second = without_adverb(pick_clause(chance, frame, again, depth=1, group=group, simple=chance.happens(0.6)))
    if chance.happens(first_probability):
        return main_and_subordinate(second, first, conjunction, sub_first=True)
    return main_and_subordinate(first, second, conjunction, sub_first=False)


def reason_clause(chance: Chance) -> Pair:
    return linked_clauses(chance, [(("because", "weil"), "any")], 0.25)


def concession_clause(chance: Chance) -> Pair:
    return linked_clauses(chance, [(("although", "obwohl"), "any")], 0.5)


def condition_clause(chance: Chance) -> Pair:
    return linked_clauses(chance, [(("if", "wenn"), "present")], 0.6)


def time_clause(chance: Chance) -> Pair:
    conjunctions = [
        (("when", "als"), "past"),
        (("when", "als"), "past"),
        (("before", "bevor"), "any"),
        (("while", "während"), "any"),
        (("until", "bis"), "any"),
        (("as soon as", "sobald"), "any"),
    ]
    return linked_clauses(chance, conjunctions, 0.35)


def after_pluperfect(chance: Chance) -> Pair:
    subject = chance.pick([pick_name(chance), PRONOUNS[2], PRONOUNS[3], PRONOUNS[4], PRONOUNS[0]])
    first_frame, second_frame = chance.pick(ACTIVITIES), chance.pick(ACTIVITIES)
    sub = Clause(subject, pick_verb_phrase(chance, first_frame, subject, depth=1), "pluperfect")
    again = back_reference(subject)
    tense = pick_tense(chance, second_frame, again, negated=True, group="past")
    main = Clause(again, pick_verb_phrase(chance, second_frame, again, depth=1, adjuncts=False), tense)
    return main_and_subordinate(main, sub, ("after", "nachdem"), sub_first=True)


def adjective_reason(chance: Chance) -> Pair:
    past = chance.happens(0.4)
    main = pick_clause(chance, chance.pick(ACTIVITIES), depth=1, group="past" if past else "present")
    subject = back_reference(main.subject) if can_be_person_pronoun(main.subject) else pick_name(chance)
    sub = predicate(subject, chance.pick(PERSON_ADJECTIVES), "past" if past else "present")
    if chance.happens(0.3):
        sub = negate_predicate(sub)
    return main_and_subordinate(main, sub, ("because", "weil"), sub_first=False)


def negate_predicate(clause: Clause) -> Clause:
    return replace(clause, negated=True, phrase=replace(clause.phrase, nicht=True))


def speaker(chance: Chance, past: bool) -> Nominal:
    """A person, but no "you" in the past, where German avoids the du-form."""
    subject = pick_subject(chance, ("person",), plain=True, depth=1)
    return PRONOUNS[0] if past and subject.person == 2 else subject


def that_clause(chance: Chance) -> Pair:
    past = chance.happens(0.35)
    verb = chance.pick([VERBS[name] for name in ("say", "believe", "hope", "know_that")])
    main = Clause(speaker(chance, past), VerbPhrase(verb), "past" if past else "present")
    sub = pick_clause(chance, depth=1, group="past" if past else "any")
    return main_and_subordinate(main, sub, ("that", "dass"), sub_first=False)


def indirect_question_frame(chance: Chance) -> tuple[Pair, str]:
    """Start of a sentence about a question, with its end mark."""
    asker = back_reference(pick_name(chance)) if chance.happens(0.5) else pick_name(chance)
    return chance.pick(
        [
            (("I do not know", "ich weiß nicht"), "."),
            (("do you know", "weißt du"), "?"),
            ((f"{asker.en} asks me", f"{asker.in_case('nom')} fragt mich"), "."),
            ((f"{asker.en} asked us", f"{asker.in_case('nom')} fragte uns"), "."),
            (("we want to know", "wir wollen wissen"), "."),
            ((f"{asker.en} knows", f"{asker.in_case('nom')} weiß"), "."),
        ]
    )


def indirect_question(chance: Chance) -> Pair:
    (en, de), end = indirect_question_frame(chance)
    kind = chance.pick(("whether", "where", "why", "when", "who", "what"))
    if kind == "who":
        clause = pick_clause(chance, pick_frame(chance, "person"), WHO, depth=1, affirmative=True)
        return f"{en} {english_statement(clause)} {end}", f"{de} , {german_subordinate(clause)} {end}"
    if kind == "where":
        clause = pick_clause(chance, pick_frame(chance, "", "place"), gap=0, depth=1, simple=True)
    elif kind == "what":
        frame = chance.pick([f for f in OBJECT_FRAMES if "person" not in object_classes(f)])
        clause = pick_clause(chance, frame, gap=0, depth=1, affirmative=True)
    else:
        clause = pick_clause(chance, depth=1, simple=kind == "when")
    clause = without_adverb(clause)
    german = {"whether": "ob", "where": "wo", "why": "warum", "when": "wann", "what": "was"}[kind]
    en_sub, de_sub = subordinate(clause, (kind, german))
    return f"{en} {en_sub} {end}", f"{de} , {de_sub} {end}"


def infinitive_clause(chance: Chance) -> Pair:
    tense = chance.pick(("present", "past", "perfect"))
    verb = VERBS[chance.pick(("try", "hope", "decide", "plan", "forget_to"))]
    subject = speaker(chance, tense == "past")
    inner = pick_verb_phrase(chance, chance.pick(ACTIVITIES), subject, depth=1)
    main = Clause(subject, VerbPhrase(verb), tense)
    return (
        f"{english_statement(main)} to {inner.verb.en} {inner.en} .",
        f"{german_statement(main)} , {german_infinitive(inner)} .",
    )


def purpose_clause(chance: Chance) -> Pair:
    """in order to / um ... zu, and without ...ing / ohne ... zu."""
    frame = chance.pick(ACTIVITIES)
    main = without_adverb(pick_clause(chance, frame, depth=1, simple=True))
    if not main.subject.animate:
        return simple_statement(chance)
    inner = pick_verb_phrase(chance, chance.pick(ACTIVITIES), main.subject, depth=1, adjuncts=False)
    if chance.happens(0.3):
        en, de = f"without {english_gerund(inner.verb.en)}", "ohne"
    else:
        en, de = f"in order to {inner.verb.en}", "um"
    return (
        f"{english_statement(main)} {en} {inner.en} .",
        f"{german_statement(main)} , {de} {german_infinitive(inner)} .",
    )


def pick_definite(chance: Chance, noun: Noun, plural: bool) -> Determiner:
    """the, this or a possessive."""
    gender = "p" if plural else noun.gender
    en, stem = chance.pick(POSSESSIVES)
    if noun.en in NEVER_POSSESSED:
        return Determiner("the", DEFINITE_ARTICLES[gender], "weak")
    return chance.pick(
        [
            Determiner("the", DEFINITE_ARTICLES[gender], "weak"),
            Determiner(en, ein_word(stem, gender), "mixed"),
            Determiner("these" if plural else "this", der_word("dies", gender), "weak"),
        ]
    )


def pick_thing(chance: Chance, classes: Sequence[str], plural_probability: float = 0.2) -> tuple[Noun, Nominal]:
    """A definite phrase that a later pronoun can refer to."""
    noun = pick_noun(chance, classes)
    plural = not noun.mass and chance.happens(plural_probability)
    return noun, compose(noun, plural, pick_definite(chance, noun, plural), [])


THING_CLASSES = ("clothes", "thing", "furniture", "device", "vehicle", "place", "opening", "text", "art", "plant")


def two_adjectives(chance: Chance) -> Pair:
    """ "The table is old, but it is beautiful." """
    noun, subject = pick_thing(chance, (*THING_CLASSES, "animal"))
    first, second = pick_adjective(chance, noun), pick_adjective(chance, noun)
    if first.de == second.de:
        return simple_statement(chance)
    tense = chance.pick(("present", "present", "past"))
    one = predicate(subject, first, tense, chance.pick(("", "very", "too")))
    two = predicate(back_reference(subject), second, tense, chance.pick(("", "very")))
    if chance.happens(0.3):
        one = negate_predicate(one)
    return (
        f"{english_statement(one)} , but {english_statement(two)} .",
        f"{german_statement(one)} , aber {german_statement(two)} .",
    )


def thing_frame(chance: Chance) -> tuple[Frame, Noun, Nominal]:
    while True:
        frame = chance.pick(OBJECT_FRAMES)
        classes = object_classes(frame)
        noun, nominal = pick_thing(chance, classes)
        if "person" not in noun.classes and has_adjective(noun) and frame.verb.en not in NOT_FOR_PRONOUNS:
            return frame, noun, nominal


def object_reason(chance: Chance) -> Pair:
    """ "She buys the table because it is beautiful." """
    frame, noun, nominal = thing_frame(chance)
    past = chance.happens(0.4)
    main = pick_clause(
        chance,
        frame,
        chance.pick([*PRONOUNS[:5], pick_name(chance)]),
        group="past" if past else "present",
        depth=1,
        simple=True,
        fixed=nominal,
    )
    main = without_adverb(main)
    degree = chance.pick(("", "very", "so"))
    sub = predicate(back_reference(nominal), pick_adjective(chance, noun), "past" if past else "present", degree)
    return main_and_subordinate(main, sub, ("because", "weil"), sub_first=False)


def object_condition(chance: Chance) -> Pair:
    """ "If the lamp is too expensive, Anna will not buy it." """
    frame, noun, nominal = thing_frame(chance)
    negated = chance.happens(0.6)
    subject = chance.pick([pick_name(chance), PRONOUNS[0], PRONOUNS[1], PRONOUNS[4]])
    phrase = pick_verb_phrase(chance, frame, subject, negated, depth=1, adjuncts=False, fixed=back_reference(nominal))
    tense = chance.pick(("future", "present")) if negated else "future"
    main = Clause(subject, phrase, tense, negated)
    sub = predicate(nominal, pick_adjective(chance, noun), "present", chance.pick(("", "too", "very")))
    return main_and_subordinate(main, sub, ("if", "wenn"), sub_first=True)


def consequence(chance: Chance) -> Pair:
    """ "The suitcase is so heavy that Anna cannot carry it." """
    adjective_name, verb = chance.pick(
        [("heavy", "carry"), ("expensive", "buy"), ("difficult", "understand"), ("big", "carry"), ("old", "use")]
    )
    adjective = next(a for a in ADJECTIVES if a.en == adjective_name)
    frame = next(f for f in FRAMES if f.verb is VERBS[verb])
    fitting = [n for n in ALL_NOUNS if has_class(n, object_classes(frame)) and has_class(n, adjective.classes)]
    noun = chance.pick([n for n in fitting if "person" not in n.classes])
    nominal = compose(noun, False, pick_definite(chance, noun, False), [])
    past = chance.happens(0.4)
    main = predicate(nominal, adjective, "past" if past else "present", "so")
    subject = chance.pick([pick_name(chance), *PRONOUNS[:5]])
    phrase = pick_verb_phrase(chance, frame, subject, True, depth=1, adjuncts=False, fixed=back_reference(nominal))
    sub = Clause(subject, phrase, "could" if past else "can", negated=True)
    return main_and_subordinate(main, sub, ("that", "dass"), sub_first=False)


def comparison(chance: Chance) -> Pair:
    """ "My coat is longer than her dress." or "as long as"."""
    adjective = chance.pick([a for a in ADJECTIVES if a.de_comparative != "-"])
    one, two = (pick_thing(chance, adjective.classes, 0.1) for _ in range(2))
    if one[0].en == two[0].en or one[0].classes[0] != two[0].classes[0]:
        return comparison(chance)
    tense = chance.pick(("present", "present", "past"))
    if chance.happens(0.6):
        en, de = f"{english_degree(adjective.en, 'er')} than", f"{adjective.de_comparative} als"
    else:
        en, de = f"as {adjective.en} as", f"so {adjective.de} wie"
    negated = chance.happens(0.3)
    nicht = "nicht " if negated else ""
    be = form_of_be(one[1], tense == "past") + (" not" if negated else "")
    ist = german_past("war") if tense == "past" else IRREGULAR_PRESENT["sein"]
    return (
        f"{one[1].en} {be} {en} {two[1].en} .",
        f"{one[1].in_case('nom')} {ist[one[1].form]} {nicht}{de} {two[1].in_case('nom')} .",
    )


def superlative(chance: Chance) -> Pair:
    noun = pick_noun(chance, ("building", "room", "tree", "furniture", "vehicle", "thing", "person", "animal"), "count")
    gradable = pick_adjective(chance, noun, gradable=True)
    phrase = compose(
        noun,
        False,
        Determiner("the", DEFINITE_ARTICLES[noun.gender], "weak"),
        [(english_degree(gradable.en, "est"), gradable.de_superlative)],
    )
    where = pick_where(chance)
    if chance.happens(0.3):
        past = chance.happens(0.3)
        return f"this {'was' if past else 'is'} {phrase.en} {where[0]} .", (
            f"das {'war' if past else 'ist'} {phrase.in_case('nom')} {where[1]} ."
        )
    frame = frame_index(chance, noun, "acc")
    if frame is None or len(frame[0].complements) > 1:
        return superlative(chance)
    return statement(without_adverb(pick_clause(chance, frame[0], depth=1, simple=True, fixed=phrase)))


def passive(chance: Chance) -> Pair:
    frame = chance.pick([f for f in OBJECT_FRAMES if not f.verb.state])
    _, subject = pick_thing(chance, object_classes(frame))
    agent = pick_noun_phrase(chance, ("person",), plain=True, depth=1) if chance.happens(0.8) else pick_name(chance)
    en, de = prepositional("by", "von", "dat", agent)
    phrase = VerbPhrase(frame.verb, en=join(frame.verb.en_particle, en), tail=de)
    tense = chance.pick(("passive present", "passive past"))
    time = pick_time(chance, tense.removeprefix("passive ")) if chance.happens(0.4) else ("", "")
    clause = Clause(subject, phrase, tense, time=time)
    return chance.pick((statement, statement, ask))(clause)


SETTLEMENTS: Sequence[Pair] = [
    ("in the city", "in der Stadt"),
    ("in the village", "im Dorf"),
    ("in our city", "in unserer Stadt"),
    ("in this village", "in diesem Dorf"),
]


def there_is(chance: Chance) -> Pair:
    noun = pick_noun(chance, ("furniture", "building", "plant", "thing", "opening", "animal"))
    plural = chance.happens(0.5)
    if plural:
        number = 2 + chance.pick(range(60))
        determiner = chance.pick(
            [
                Determiner("many", der_word("viel", "p"), "strong"),
                Determiner(english_number(number), (german_number(number),) * 4, "strong"),
            ]
        )
    else:
        determiner = Determiner("a", ein_word("ein", noun.gender), "mixed")
    adjective = pick_adjective(chance, noun)
    adjectives = [(adjective.en, adjective.de)] if chance.happens(0.6) else []
    phrase = compose(noun, plural, determiner, adjectives)
    past = chance.happens(0.4)
    be = ("were" if past else "are") if plural else ("was" if past else "is")
    where = pick_where(chance)
    if "building" in noun.classes or noun.en == "garden":
        where = pick_city(chance, "in", "in") if chance.happens(0.6) else chance.pick(SETTLEMENTS)
    return (
        f"there {be} {phrase.en} {where[0]} .",
        f"es {'gab' if past else 'gibt'} {phrase.in_case('acc')} {where[1]} .",
    )


def age(chance: Chance) -> Pair:
    number = 20 + chance.pick(range(80))
    subject = pick_name(chance) if chance.happens(0.4) else pick_noun_phrase(chance, ("kin",), plain=True, depth=1)
    if subject.kind == "indefinite":
        subject = chance.pick(PRONOUNS[:4])
    phrase = VerbPhrase(
        VERBS["be"], en=f"{english_number(number)} years old", tail=f"{german_number(number)} Jahre alt"
    )
    return statement(Clause(subject, phrase, chance.pick(("present", "past"))))


def price(chance: Chance) -> Pair:
    number = 2 + chance.pick(range(98))
    _, subject = pick_thing(chance, ("clothes", "thing", "furniture", "device", "food", "text", "bicycle"))
    phrase = VerbPhrase(VERBS["cost"], en=f"{english_number(number)} euros", focus=f"{german_number(number)} Euro")
    past = subject.en_singular and chance.happens(0.3)
    return statement(Clause(subject, phrase, "past" if past else "present"))


def time_of_day(chance: Chance) -> Pair:
    en, de = pick_clock(chance)
    (first_en, first_de), (last_en, last_de) = chance.pick(
        [
            (("it is", "es ist"), ("", "")),
            (("it is already", "es ist schon"), ("", "")),
            (("it was", "es war"), ("", "")),
            (("I think it is", "ich denke , es ist"), ("", "")),
            (("the clock shows", "die Uhr zeigt"), ("", "")),
        ]
    )
    if chance.happens(0.75):
        frame = chance.pick([f for f in FRAMES if f.verb.en in ("arrive", "depart", "begin", "take", "get", "wake")])
        clause = pick_clause(chance, frame, affirmative=True, depth=1, simple=True)
        if clause.tense in ("progressive", "perfect"):
            clause = replace(clause, tense="future")
        clause = replace(without_adverb(clause), time=(f"at {en}", f"um {de}"))
        return statement(clause)
    return f"{first_en} {en} {last_en} .", f"{first_de} {de} {last_de} ."


def shared_subject(chance: Chance) -> Pair:
    """ "She opens the door and goes into the house." """
    frames = [f for f in ACTIVITIES if f.verb.en_past != f.verb.en]
    subject = pick_subject(chance, ("person",), plain=True, depth=1)
    tense = "present" if subject.person == 2 or chance.happens(0.5) else "past"
    silent = replace(subject, en="", de=("",) * 4)
    one = Clause(subject, pick_verb_phrase(chance, chance.pick(frames), subject, depth=1), tense)
    two = Clause(silent, pick_verb_phrase(chance, chance.pick(frames), silent, depth=1, adjuncts=False), tense)
    return (
        f"{english_statement(one)} and {english_statement(two)} .",
        f"{german_statement(one)} und {german_statement(two)} .",
    )


def object_taken_up(chance: Chance) -> Pair:
    """ "Anna buys the book and reads it." """
    frame, noun, nominal = thing_frame(chance)
    found = frame_index(chance, noun, "acc")
    if (
        found is None
        or found[0] is frame
        or found[0].verb.en in NOT_FOR_PRONOUNS
        or len(found[0].complements) > 1
        or "person" not in found[0].subject
    ):
        return object_taken_up(chance)
    verbs = (frame.verb, found[0].verb)
    if any(verb.en_past == verb.en for verb in verbs):
        return object_taken_up(chance)
    subject = pick_subject(chance, ("person",), plain=True, depth=1)
    tense = "present" if subject.person == 2 or chance.happens(0.5) else "past"
    silent = replace(subject, en="", de=("",) * 4)
    one = Clause(subject, pick_verb_phrase(chance, frame, subject, depth=1, adjuncts=False, fixed=nominal), tense)
    again = pick_verb_phrase(chance, found[0], silent, depth=1, adjuncts=False, fixed=back_reference(nominal))
    two = Clause(silent, again, tense)
    return (
        f"{english_statement(one)} and {english_statement(two)} .",
        f"{german_statement(one)} und {german_statement(two)} .",
    )


def two_sentences(chance: Chance) -> Pair:
    group = chance.pick(("present", "past"))
    one = pick_clause(chance, depth=1, group=group)
    two = pick_clause(chance, depth=1, group=group)
    en, de = chance.pick([(", and", "und"), (", but", ", aber"), (", or", "oder")])
    return (
        f"{english_statement(one)} {en} {english_statement(two)} .",
        f"{german_statement(one)} {de} {german_statement(two)} .",
    )


def coordinate(one: Nominal, two: Nominal, en: Pair, de: Pair) -> Nominal:
    return Nominal(
        en=join(en[0], one.en, en[1], two.en),
        en_object=join(en[0], one.en_object, en[1], two.en_object),
        de=tuple(join(de[0], a, de[1], b) for a, b in zip(one.de, two.de, strict=True)),
        plural=True,
        gender="p",
        kind="quantified",
        animate=one.animate and two.animate,
    )


COORDINATORS = [
    (("", "and"), ("", "und")),
    (("both", "and"), ("sowohl", "als auch")),
    (("either", "or"), ("entweder", "oder")),
    (("neither", "nor"), ("weder", "noch")),
]


def two_subjects(chance: Chance) -> Pair:
    one, two = (
        pick_name(chance) if chance.happens(0.4) else pick_noun_phrase(chance, ("person",), plain=True, depth=1)
        for _ in range(2)
    )
    if one.en == two.en or "indefinite" in (one.kind, two.kind):
        return two_subjects(chance)
    subject = coordinate(one, two, *chance.pick(COORDINATORS[:2]))
    return statement(pick_clause(chance, pick_frame(chance, "person"), subject, depth=1, affirmative=True))


def two_objects(chance: Chance) -> Pair:
    frame = chance.pick(OBJECT_FRAMES)
    classes = object_classes(frame)
    one, two = (pick_thing(chance, classes)[1] for _ in range(2))
    if one.in_case("acc") == two.in_case("acc"):
        return two_objects(chance)
    both = coordinate(one, two, *chance.pick(COORDINATORS))
    return statement(without_adverb(pick_clause(chance, frame, depth=1, simple=True, fixed=both)))


def correction(chance: Chance) -> Pair:
    """ "She does not buy the table but the chair." """
    frame = chance.pick(OBJECT_FRAMES)
    classes = object_classes(frame)
    one, two = (pick_thing(chance, classes)[1] for _ in range(2))
    if one.in_case("acc") == two.in_case("acc") or one.animate != two.animate:
        return correction(chance)
    both = coordinate(one, two, ("", "but"), ("nicht", ", sondern"))
    clause = without_adverb(pick_clause(chance, frame, depth=1, simple=True, fixed=both))
    if clause.tense == "progressive":
        clause = replace(clause, tense="perfect")
    return statement(replace(clause, negated=True))


def command(chance: Chance) -> Pair:
    frames = [f for f in ACTIVITIES if f.verb.en not in ("arrive", "dream", "cry")]
    negated = chance.happens(0.3)
    phrase = pick_verb_phrase(chance, chance.pick(frames), PRONOUNS[1], negated, depth=1)
    imperative = join(german_imperative(phrase.verb), german_middle(phrase), phrase.verb.de_prefix)
    en = join("do not" if negated else "", phrase.verb.en, phrase.en)
    en_please, de_please = ("please", "bitte") if chance.happens(0.4) else ("", "")
    return f"{en_please} {en} !", f"{de_please} {imperative} !"


def unreal_condition(chance: Chance) -> Pair:
    """ "If she were rich, she would buy the house." """
    subject = pick_subject(chance, ("person",), plain=True, depth=1)
    if subject.kind == "indefinite":
        subject = pick_name(chance)
    if chance.happens(0.5):
        adjective = chance.pick(PERSON_ADJECTIVES)
        forms = ("wäre", "wärst", "wäre", "wären")
        en, de = f"were {adjective.en}", f"{adjective.de} {forms[subject.form]}"
    else:
        en, de = chance.pick([("time", "Zeit"), ("money", "Geld")])
        forms = ("hätte", "hättest", "hätte", "hätten")
        en, de = f"had more {en}", f"mehr {de} {forms[subject.form]}"
    again = back_reference(subject)
    phrase = pick_verb_phrase(chance, chance.pick(ACTIVITIES), again, depth=1)
    main = Clause(again, phrase, "conditional")
    return (
        f"if {subject.en} {en} , {english_statement(main)} .",
        f"wenn {subject.in_case('nom')} {de} , {german_question(main)} .",
    )


def weather_condition(chance: Chance) -> Pair:
    (en, de), (time_en, time_de) = (
        chance.pick(
            [("it rains", "es {} regnet"), ("it snows", "es {} schneit"), ("the sun shines", "die Sonne {} scheint")]
        ),
        chance.pick([("tomorrow", "morgen"), ("today", "heute"), *((f"on {e}", f"am {d}") for e, d in WEEKDAYS)]),
    )
    main = pick_clause(chance, chance.pick(ACTIVITIES), depth=1, simple=True)
    main = replace(without_adverb(main), tense=chance.pick(("future", "can", "have to", "want to")))
    if not main.subject.animate:
        main = replace(main, tense="future")
    return f"if {en} {time_en} , {english_statement(main)} .", f"wenn {de.format(time_de)} , {german_question(main)} ."


def duration(chance: Chance) -> Pair:
    """ "She has lived in Berlin for ten years.", which German says in the present."""
    number = 2 + chance.pick(range(40))
    en, de = chance.pick(
        [("years", "Jahren"), ("weeks", "Wochen"), ("days", "Tagen"), ("months", "Monaten"), ("hours", "Stunden")]
    )
    verbs = ("live", "work", "wait", "sleep", "sit", "talk", "play", "look", "repair", "paint")
    frame = chance.pick([f for f in FRAMES if f.verb.en in verbs and f.verb.en_particle in ("", "for")])
    clause = without_adverb(pick_clause(chance, frame, depth=1, simple=True))
    english = replace(clause, tense="perfect", time=(f"for {english_number(number)} {en}", ""))
    german = replace(clause, tense="present", time=("", f"seit {german_number(number)} {de}"))
    return english_statement(english) + " .", german_statement(german) + " ."


def located_subject(chance: Chance) -> Pair:
    """ "The lamp on the table is new." """
    noun, subject = pick_thing(chance, ("thing", "clothes", "text"))
    en, de = pick_spot(chance, "dat")
    here = replace(subject, en=f"{subject.en} {en}", de=tuple(f"{form} {de}" for form in subject.de))
    if chance.happens(0.4):
        return statement(Clause(here, belonging(chance), "present"))
    clause = predicate(here, pick_adjective(chance, noun), chance.pick(("present", "past")), "")
    return statement(negate_predicate(clause)) if chance.happens(0.25) else statement(clause)


def belonging(chance: Chance) -> VerbPhrase:
    owner = pick_object(chance, ("person",), PRONOUNS[2], True, 1)
    return add_object(VerbPhrase(VERBS["belong+to"]), owner, "dat", negated=False)


def likes_to(chance: Chance) -> Pair:
    """ "She likes to dance.", in German an adverb: "Sie tanzt gern." """
    subject = pick_subject(chance, ("person",), plain=True, depth=1)
    phrase = pick_verb_phrase(chance, chance.pick(ACTIVITIES), subject, depth=1, adjuncts=False)
    german = Clause(subject, replace(phrase, adverb=("", "gern")), "present")
    en = f"{subject.en} {form_of('like', subject)} to {phrase.verb.en} {phrase.en} ."
    return en, german_statement(german) + " ."


def profession(chance: Chance) -> Pair:
    """ "His brother is a lawyer.", in German without article."""
    woman = chance.happens(0.4)
    kin = chance.pick([n for n in NOUNS.values() if "kin" in n.classes and (n.gender == "f") == woman])
    en, stem = chance.pick(POSSESSIVES)
    subject = compose(kin, False, Determiner(en, ein_word(stem, kin.gender), "mixed"), [])
    if chance.happens(0.4):
        subject = name_phrase(chance.pick(WOMEN if woman else MEN), woman)
    women = ("waitress", "actress", "nurse")
    men = ("teacher", "doctor", "policeman", "baker", "farmer", "engineer", "lawyer", "painter")
    job = NOUNS[chance.pick(women if woman else men)]
    kind = chance.pick(("be", "want", "become", "since"))
    a_job = english_article(job.en)
    if kind == "be":
        return f"{subject.en} is {a_job} .", f"{subject.in_case('nom')} ist {job.de} ."
    if kind == "want":
        return f"{subject.en} wants to become {a_job} .", f"{subject.in_case('nom')} will {job.de} werden ."
    if kind == "become":
        time = chance.pick(PAST_TIMES)
        return f"{subject.en} became {a_job} {time[0]} .", f"{subject.in_case('nom')} wurde {time[1]} {job.de} ."
    number = 2 + chance.pick(range(40))
    return (
        f"{subject.en} has been {a_job} for {english_number(number)} years .",
        f"{subject.in_case('nom')} ist seit {german_number(number)} Jahren {job.de} .",
    )


def object_relative(chance: Chance) -> Pair:
    """A sentence about a person or thing that surely has a relative clause."""
    person = chance.happens(0.5)
    noun = pick_noun(chance, ("person",) if person else THING_CLASSES)
    plural = chance.happens(0.2)
    relative = pick_relative_clause(chance, noun, plural)
    if not relative[0]:
        return object_relative(chance)
    gender = "p" if plural else noun.gender
    nominal = compose(noun, plural, Determiner("the", DEFINITE_ARTICLES[gender], "weak"), [], relative)
    if chance.happens(0.5):
        return statement(predicate(nominal, pick_adjective(chance, noun), chance.pick(("present", "past"))))
    found = frame_index(chance, noun, chance.pick(("acc", "prep", "nom")))
    if found is None or (found[1] > 0):
        return object_relative(chance)
    if found[1] < 0:
        return statement(without_adverb(pick_clause(chance, found[0], nominal, depth=1, simple=True)))
    subject = pick_subject(chance, found[0].subject, plain=True, depth=1)
    return statement(pick_clause(chance, found[0], subject, depth=1, simple=True, fixed=nominal))


def simple_predicate(chance: Chance) -> Pair:
    """ "The old door is not green." and its question."""
    classes = (*THING_CLASSES, "person", "animal", "food", "drink", "film", "song", "abstract", "event")
    noun = pick_noun(chance, classes)
    subject = pick_noun_phrase(chance, (), plain=True, depth=1, noun=noun)
    if subject.kind == "indefinite" or not has_adjective(noun):
        return simple_predicate(chance)
    adjective = pick_adjective(chance, noun)
    if adjective.en in subject.en.split():
        return simple_predicate(chance)
    degree = chance.pick(("", "", "very", "too"))
    clause = predicate(subject, adjective, chance.pick(("present", "past")), degree)
    if chance.happens(0.25):
        return ask(clause)
    return statement(negate_predicate(clause) if chance.happens(0.3) else clause)


TEMPLATES: dict[Template, float] = {
    simple_statement: 12,
    fronted_time: 5,
    fronted_place: 2.5,
    yes_no_question: 4,
    who_question: 2,
    object_question: 2,
    preposition_question: 1,
    where_question: 1.5,
    origin_question: 0.5,
    adverb_question: 2,
    which_question: 1.5,
    how_many_question: 1,
    reason_clause: 3,
    concession_clause: 2.5,
    condition_clause: 2.5,
    time_clause: 4,
    after_pluperfect: 2,
    adjective_reason: 2,
    that_clause: 4,
    indirect_question: 4,
    infinitive_clause: 3.5,
    purpose_clause: 2.5,
    two_adjectives: 3.5,
    object_reason: 3.5,
    object_condition: 3,
    consequence: 1.5,
    comparison: 2.5,
    superlative: 2,
    passive: 3,
    there_is: 2.5,
    age: 1.5,
    price: 3,
    time_of_day: 2.5,
    shared_subject: 2.5,
    object_taken_up: 2.5,
    two_sentences: 2.5,
    two_subjects: 1.5,
    two_objects: 2,
    correction: 1.5,
    command: 3,
    unreal_condition: 2.5,
    weather_condition: 2,
    duration: 2,
    located_subject: 2,
    likes_to: 2,
    profession: 1,
    object_relative: 4,
    simple_predicate: 3,
}


# --------------------------------------------------------------------------------------------------------------------
# The corpus.
# --------------------------------------------------------------------------------------------------------------------


def finish(text: str) -> str:
    """Set spaces and commas right and start with a capital."""
    text = re.sub(r"(\s*,)+\s*", ", ", join(*text.split()))
    text = re.sub(r",?\s*([.?!])$", r"\1", text)
    return text[0].upper() + text[1:]


def fits(sentence: str) -> bool:
    return MIN_WORDS <= len(sentence.split()) <= MAX_WORDS


def generate_pairs(chance: Chance, n_pairs: int) -> list[Pair]:
    """Pairs whose English and German sides are all distinct."""
    pairs: list[Pair] = []
    seen_en: dict[str, str] = {}
    seen_de: dict[str, str] = {}
    while len(pairs) < n_pairs:
        en, de = (finish(side) for side in chance.pick_weighted(TEMPLATES)(chance))
        assert seen_en.get(en, de) == de, f"two translations of {en!r}: {de!r} and {seen_en[en]!r}"
        if en in seen_en or de in seen_de or not (fits(en) and fits(de)):
            continue
        seen_en[en], seen_de[de] = de, en
        pairs.append((en, de))
    return pairs


def write_whole(path: Path, lines: Sequence[str]) -> None:
    """Write beside and rename, so that the file is never there in part."""
    beside = path.with_name(path.name + ".partial")
    beside.write_bytes("".join(f"{line}\n" for line in lines).encode("utf-8"))
    os.replace(beside, path)


def write_corpus(output: Path, seed: int) -> None:
    pairs = generate_pairs(Chance(seed), N_TRAIN + N_VALID + N_TEST)
    splits = {
        "train": pairs[:N_TRAIN],
        "valid": pairs[N_TRAIN : N_TRAIN + N_VALID],
        "test": pairs[N_TRAIN + N_VALID :],
    }
    output.mkdir(parents=True, exist_ok=True)
    for name, split in splits.items():
        for language, column in (("en", 0), ("de", 1)):
            write_whole(output / f"{name}.{language}", [pair[column] for pair in split])


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the English-German demo corpus.")
    parser.add_argument("--output", type=Path, default=Path("data/demo"), help="folder for the six files")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    write_corpus(arguments.output, arguments.seed)


if __name__ == "__main__":
    main()
