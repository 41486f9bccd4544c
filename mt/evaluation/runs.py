"""The artifacts of a run for reports: curves, sample translations, and the provenance of its model."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from mt.checkpoint import CHECKSUMS, ModelFolder
from mt.config.loading import config_differences, settings_of
from mt.config.settings import Corpus, DecodeConfig, Direction, ModelConfig, TokenizerConfig, TrainConfig
from mt.decode.lines import in_one_line
from mt.decode.translator import Translator
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.evaluation.report_files import JSON_NAME, json_object
from mt.evaluation.scores import TranslatedSet
from mt.evaluation.tokenization import chosen_tokenizer
from mt.report.facts import Curve, ModelManifest, TrainingCurves, Values
from mt.run_folder import ADDED_TESTS, RunFolder, open_model
from mt.system.device import choose_device, choose_dtype, hardware
from mt.system.files import file_checksum, parse_json
from mt.text.corpora import reader_of, readers_of
from mt.text.corpus import PreparedCorpus, read_pairs, with_tag, without_tag
from mt.text.languages import closeness, words_of
from mt.text.prepare import held_out_pairs
from mt.text.reader import CorpusReader, SentencePair
from mt.text.tokenizer import Tokenizers, tokenizer_paths

_log = logging.getLogger(__name__)

MOST_POINTS = 200  # per curve; metrics.jsonl has all points
_MOST_STEPS_OF_SAMPLES = 8
_MANY_SENTENCES = 1_000_000  # counting their words takes more than half a minute
_SENTENCES_AT_ONCE = 50_000  # decoded together
_LARGEST = 1e15  # larger than any measurement; a chart can tell numbers below it apart
GivenLangs: TypeAlias = tuple[str | None, str | None]  # source and target language, as far as the user gives them
_CURVES = {
    "train": ("train_loss", "learning_rate", "grad_norm", "tgt_tokens_per_second"),
    "valid": ("valid_loss", "valid_bleu", "valid_chrf"),
}


# --- Curves and samples -----------------------------------------------------------------------------------------------


def read_training(run: RunFolder) -> TrainingCurves:
    """Read the curves of a run, thinned out, and its sample translations at some steps, including first and last.

    Unknown values are None. Lines that are unreadable or contain something else are ignored.
    """
    entries = list(_json_lines(run.metrics))
    curves = {name: _curve([one for one in entries if keys[0] in one], keys) for name, keys in _CURVES.items()}
    samples = _samples([one for one in _json_lines(run.samples) if _has_samples(one)])
    return TrainingCurves(curves=curves, samples=samples)


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_bytes().splitlines():  # bytes: in str, U+2028 inside a translation would end a line, too
        try:
            entry = parse_json(line, parse_constant=lambda name: None)  # NaN and infinity are not JSON
        except ValueError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int) and _number(entry["step"]) is not None:
            yield entry


def _curve(points: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> Curve:
    every = math.ceil(len(points) / MOST_POINTS) or 1
    shown = points[(len(points) - 1) % every :: every]  # including the last one
    curve = {key: [_number(one.get(key)) for one in shown] for key in ("step", "n_tgt_tokens", "train_seconds", *keys)}
    minutes = [None if seconds is None else seconds / 60 for seconds in curve.pop("train_seconds")]
    return curve | {"train_minutes": minutes}


def _number(value: Any) -> float | None:
    return value if isinstance(value, (int, float)) and abs(value) < _LARGEST else None


def _has_samples(entry: Mapping[str, Any]) -> bool:
    samples, keys = entry.get("samples"), ("source", "translation", "reference")
    return isinstance(samples, list) and all(
        isinstance(one, dict) and all(isinstance(one.get(key), str) for key in keys) for one in samples
    )


def _samples(entries: Sequence[Mapping[str, Any]]) -> list[Values]:
    """Choose steps at growing distances: translations change fast early in training, and hardly at its end."""
    if not entries:
        return []
    n = len(entries)
    most = min(n, _MOST_STEPS_OF_SAMPLES)
    numbers = sorted({round(n ** (i / max(1, most - 1))) - 1 for i in range(most)} | {n - 1})
    shown = [(entries[number]["step"], entries[number]["samples"]) for number in numbers]
    return [
        {
            "source": first["source"],
            "reference": first["reference"],
            "translations": [
                {"step": step, "translation": samples[i]["translation"]} for step, samples in shown if i < len(samples)
            ],
        }
        for i, first in enumerate(entries[0]["samples"])
    ]


# --- A model and its run ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunArtifacts:
    """A model folder with its run and its training corpus, as far as they still exist; each is opened once."""

    path: Path  # as the user gave it
    folder: ModelFolder
    run: RunFolder | None
    corpus: PreparedCorpus | None

    @classmethod
    def of(cls, path: Path) -> RunArtifacts:
        """
        Args:
            path: a run folder, a checkpoint or a model folder.
        Raises:
            CheckpointError: there is no model.
        """
        folder = open_model(path)
        fingerprint = folder.manifest.get("corpus_fingerprint")
        inside = folder.path.resolve()
        # model/, or checkpoints/step-N and averages/last-N.
        run = RunFolder(inside.parent if inside.name == "model" else inside.parent.parent)
        prepared = Path(folder.config.data.prepared_dir) / str(fingerprint)
        try:
            corpus = PreparedCorpus.open(prepared)
        except DataError:
            corpus = None
        # The model may have been copied into the folder of another run.
        is_its_run = run.record.is_file() and _record_of(run).get("corpus_fingerprint", fingerprint) == fingerprint
        return cls(path, folder, run if is_its_run else None, corpus)

    def count_words(self, words: Collection[str]) -> Counter[str] | None:
        """Count words in the source side of the training text, each pair once; return None if the corpus is gone."""
        if self.corpus is None:
            return None
        wanted, src = frozenset(words), self.corpus.train.src
        counts: Counter[str] = Counter()
        if wanted and len(src) > _MANY_SENTENCES:
            _log.info(f"counting words in {len(src):,} lines of training text")
        tokenizer = Tokenizers.load(self.corpus.tokenizer_paths).src
        for start in range(0, len(src) if wanted else 0, _SENTENCES_AT_ONCE):
            stop = min(start + _SENTENCES_AT_ONCE, len(src))
            for line in tokenizer.decode_batch(src[i].tolist() for i in range(start, stop)):
                counts.update(word for word in words_of(line) if word in wanted)
        return counts

    def bleu_tokenizer(self, direction: Direction, wanted: str | None = None) -> str:
        """Return the wanted tokenizer of BLEU, by default that of the model's run for the target language.

        Raises:
            ConfigError: it cannot be used on this machine.
        """
        return chosen_tokenizer(wanted or self.folder.config.eval.bleu_tokenize, direction.tgt)

    def directions(self, names: Iterable[str]) -> dict[str, Direction]:
        """Return the direction of each of these validation and test sets."""
        known = {**self.folder.config.valid_sets, **self.folder.config.tests}
        return {name: known[name].direction for name in names}

    def test_names(self, wanted: Sequence[str] = (), langs: GivenLangs = (None, None)) -> list[str]:
        """Return the names of all test sets, or of those wanted, each once.

        Args:
            langs: source and target language of the sets; None: any.
        Raises:
            ConfigError: the model has no test set, or none of a wanted name or language.
        """
        all_known = self.folder.config.tests
        known = {
            name: one
            for name, one in all_known.items()
            if all(given is None or closeness(given, lang) for given, lang in zip(langs, one.direction, strict=True))
        }
        if all_known and not known:
            has = ", ".join(f"{name} ({one.direction})" for name, one in all_known.items())
            raise ConfigError("to" if langs[1] else "from", f"{self.path} has no such test set", f"it has {has}")
        for name in wanted:
            if name not in known:
                names = f"it has {', '.join(known)}" if known else "its config has none under data.test"
                raise ConfigError("test", f"{self.path} has no test set {name}", names)
        if not known:
            problem = "its config has no test set under data.test"
            raise ConfigError(self.path, problem, "give other text, such as --src FILE --ref FILE")
        return list(dict.fromkeys(wanted)) or list(known)

    def test_pairs(self, names: Sequence[str]) -> dict[str, list[SentencePair]]:
        """Return test sets from the prepared corpus or the run; if these are gone, read the sources in the config.

        Raises:
            DataError: the sources are gone, too.
        """
        readers = readers_of(self.folder.config)
        return {name: self._test_pairs(name, readers[f"data.test.{name}"]) for name in names}

    def _test_pairs(self, name: str, reader: CorpusReader) -> list[SentencePair]:
        if self.corpus is not None and name in self.corpus.test_pairs:
            return self.corpus.test_pairs[name]
        if self.run is not None and (added := self.run.added_test(name)).is_file():
            try:
                return read_pairs(added)
            except (OSError, ValueError):
                fix = "delete it, then run mt train again to copy the text again"
                raise DataError(added, "is damaged", fix) from None
        return with_tag(reader.pairs(), reader.corpus.tag)

    def pairs_of(self, corpus: Corpus, langs: tuple[str, str]) -> list[SentencePair]:
        """Read other text, with its tag as the model reads it.

        Args:
            langs: its languages.
        Raises:
            ConfigError: the model does not know the tag.
            DataError: the text is missing, unreadable, empty or not parallel.
        """
        config = self.folder.config
        if corpus.tag not in (None, *config.symbols):
            knows = f"it knows {', '.join(config.symbols)}" if config.symbols else "remove the tag"
            raise ConfigError("data.tag", f"{self.path} does not know {corpus.tag}", knows)
        reader = reader_of(corpus, langs, "test")
        return with_tag(held_out_pairs(reader), corpus.tag)

    def test_references(self, name: str) -> list[str] | None:
        """Return the references of a test set, or of the validation set (`valid`); None if they are gone."""
        if name in self.folder.config.valid_sets:
            return None if self.corpus is None else [pair.tgt for pair in self.corpus.valid_sets[name]]
        try:
            return [pair.tgt for pair in self.test_pairs([name])[name]]
        except (MTError, KeyError):
            return None

    def translate(
        self,
        sets: Mapping[str, Sequence[SentencePair]],
        directions: Mapping[str, Direction],
        device: str,
        precision: str,
        *,
        n_processes: int | None,
    ) -> dict[str, TranslatedSet]:
        """Translate test sets, whose source segments may begin with a tag. A translation is one line.

        Args:
            directions: of the sets.
        Raises:
            ConfigError: the model does not have a language.
        """
        loaded, translated = Translator.load(self.folder, device, precision, n_processes=n_processes), {}
        for name, pairs in sets.items():
            direction = directions[name]
            is_known = direction in self.folder.config.all_directions
            translator = loaded.in_direction(direction) if is_known else loaded.between(*direction)
            hypotheses = list(map(in_one_line, translator.translate([pair.src for pair in pairs])))
            translated[name] = self._translated_set(pairs, hypotheses, direction)
        return translated

    def _translated_set(
        self, pairs: Sequence[SentencePair], hypotheses: Sequence[str], direction: Direction
    ) -> TranslatedSet:
        """Return the set for scoring, without tags, which are only for the model."""
        config = self.folder.config
        sources, references = [without_tag(pair.src, config.data.tags) for pair in pairs], [pair.tgt for pair in pairs]
        has_several = len(config.all_directions) > 1
        return TranslatedSet(
            sources,
            hypotheses,
            [references],
            direction.tgt,
            src_lang=direction.src if has_several else None,
            is_zero_shot=has_several and direction not in config.directions,
        )

    def kept_translations(
        self, sets: Mapping[str, Sequence[SentencePair]], directions: Mapping[str, Direction]
    ) -> dict[str, TranslatedSet]:
        """Return those translations of the sets that the run has stored and that are of this model and this text."""
        if self.run is None or self.folder.path.resolve() != self.run.model:  # not the final model of its run
            return {}
        report = json_object(self.run.path / JSON_NAME)
        if report.get("basis") != basis_of(self.folder):
            return {}
        kept = {}
        for name, pairs in sets.items():
            path = self.run.translation(name)
            with suppress(OSError, ValueError, KeyError, TypeError):
                checksums = report["translations"][name], report["texts"][name]
                hypotheses = path.read_text(encoding="utf-8").split("\n")[:-1]
                if checksums == (file_checksum(path), self.text_checksum(pairs, directions[name])):
                    kept[name] = self._translated_set(pairs, hypotheses, directions[name])
        return kept

    def text_checksum(self, pairs: Iterable[SentencePair], direction: Direction) -> str:
        """Return the SHA-256 of source text and references of a set, and of its direction if the model has several."""
        languages = [direction] if len(self.folder.config.directions) > 1 else []
        return hashlib.sha256(json.dumps([*((one.src, one.tgt) for one in pairs), *languages]).encode()).hexdigest()

    def overlap_warnings(self, names: Collection[str]) -> dict[str, list[str]]:
        """Return a warning for each test set that was added to the run and that is partly in its training text."""
        problem = "in the training text, because the test set was added after preparation: the scores are too high"
        return {
            name: [f"{one['in_training']:,} of {one['pairs']:,} segments are {problem}"]
            for name, one in self._added.items()
            if name in names and one["in_training"]
        }

    @property
    def _added(self) -> dict[str, Any]:
        """Test sets that were added to the run → facts."""
        found: dict[str, Any] = {} if self.run is None else _record_of(self.run).get(ADDED_TESTS, {})
        return found

    def settings(self) -> dict[str, Any]:
        """Return dotted key → value of the settings; of a tokenizer that was given, only the vocabulary size."""
        config = self.folder.config
        settings = settings_of(config)
        if config.train.init_from is not None or config.tokenizer.model is not None:
            settings = {key: value for key, value in settings.items() if not key.startswith("tokenizer.")}
            settings["tokenizer.vocab_size"] = self.folder.manifest["vocab_size"]
        return settings

    @property
    def tokenizer_checksums(self) -> tuple[str, ...]:
        """The checksums of the model's tokenizers."""
        return tuple(str(self.folder.manifest[CHECKSUMS].get(path.name)) for path in tokenizer_paths(self.folder.path))

    @property
    def description(self) -> str:
        """The model's steps in words, such as `the model of step 1,000`."""
        steps = self.folder.manifest.get("averaged_steps") or [self.folder.manifest.get("step") or 0]
        if len(steps) > 1:
            return f"the average of {len(steps)} checkpoints up to step {steps[-1]:,}"
        return f"the model of step {steps[-1]:,}"

    def figures(self) -> dict[str, Any]:
        """Return the known figures of training, as fields of an Evaluation or of SystemFigures."""
        keys = {"steps": "step", "n_tgt_tokens": "n_tgt_tokens", "train_seconds": "train_seconds"}
        known = {name: self.folder.manifest.get(key) for name, key in keys.items()}
        return known | {"n_parameters": self.folder.n_parameters}

    def training(self) -> TrainingCurves | None:
        """Read the curves of the model's run; return None if the run is unknown."""
        return None if self.run is None else read_training(self.run)

    def facts(self, device: str, precision: str) -> dict[str, Any]:
        """Return the model's provenance for a report, as fields of an Evaluation.

        Args:
            device, precision: the options with which the model translated.
        """
        config, manifest = self.folder.config, self.folder.manifest
        record = {} if self.run is None else _record_of(self.run)
        defaults = replace(
            config, tokenizer=TokenizerConfig(), model=ModelConfig(), train=TrainConfig(), decode=DecodeConfig()
        )
        known = ("averaged_steps", "step", "commit", "versions", "hardware", "sha256")
        chosen = choose_device(device)
        dtype = str(choose_dtype(precision, chosen)).removeprefix("torch.")
        facts = ModelManifest(
            description=self.description,
            settings=self.settings(),
            changed=list(config_differences(defaults, config)),
            model={key: manifest[key] for key in known if manifest.get(key) is not None},
            starts=record.get("starts", []),
            corpus={"fingerprint": str(manifest.get("corpus_fingerprint")), **self._corpus_counts()},
            translation={"device": chosen.type, "precision": dtype, "hardware": hardware(chosen)},
        )
        languages = config.directions[0].in_words() if len(config.all_directions) == 1 else {}
        return {**languages, "manifest": facts, "training": self.training()}

    def _corpus_counts(self) -> dict[str, Any]:
        if self.corpus is None:
            return {}
        train = self.corpus.manifest["train"]
        counts = ("source", "tag", "weight", "pairs_read", "pairs_kept")
        sources = [{key: source.get(key) for key in counts} for source in train["sources"]]
        manifest = self.corpus.manifest
        held_out = {"valid": manifest["valid"], "test": {**manifest["test"], **self._added}}
        return {"train": train | {"sources": sources}, **held_out}


def _record_of(run: RunFolder) -> dict[str, Any]:
    """Return the run's record, an empty one if it is damaged."""
    try:
        return run.read_record() or {}
    except CheckpointError:
        return {}


def basis_of(folder: ModelFolder) -> dict[str, Any]:
    """Return everything that a model's translations of a text depend on."""
    return {"averaged_steps": folder.manifest.get("averaged_steps"), "decode": asdict(folder.config.decode)}
