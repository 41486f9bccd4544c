"""The layout of a run folder, and its checkpoints: listing them, ranking them by score, removing old ones."""

from __future__ import annotations

import math
import re
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain, product
from os import PathLike
from pathlib import Path
from typing import Any, Literal, NoReturn

from pydantic import Field, ValidationError

from mt.checkpoint import MANIFEST, WEIGHTS, ModelFolder
from mt.config.loading import CONFIG, as_yaml, load_config
from mt.config.settings import Direction, RunConfig, TrainConfig, of_both_sides
from mt.errors import CheckpointError, ConfigError, DataError, MTError
from mt.report.facts import Facts
from mt.system.files import read_json, remove_folder, remove_leftovers, write_json
from mt.system.locks import locked
from mt.text.corpus import PreparedCorpus
from mt.text.languages import closeness
from mt.text.reader import SentencePair
from mt.text.tokenizer import vocabularies
from mt.units import listed

MADE_AT = "made_at_step"  # manifest key of a run's model: the last update before it was made
ADDED_TESTS = "added_tests"  # key of run.json: test sets that were added after the corpus was prepared → facts
_RECORD = "run.json"


class _Start(Facts):
    started_at: str = ""  # ISO 8601
    command: list[str] = Field([])
    commit: str | None = None
    versions: dict[str, Any] = Field({})
    hardware: dict[str, Any] = Field({})


class _AddedTest(Facts):
    source: str
    pairs: int
    fingerprint: list[str | None]  # of the text, the tag, and the languages if the model has several
    in_training: int  # pairs with a side in the training text


class _Record(Facts):
    """The entries of run.json that are read."""

    corpus_fingerprint: str
    starts: list[_Start]
    added_tests: dict[str, _AddedTest] = Field({})


class _Ranked(Facts):
    step: int
    score: float
    chrf: float = 0.0


class _Ranking(Facts):
    """The entries of best.json that are read."""

    ranking: list[_Ranked]


def _place(error: ValidationError) -> str:
    return ".".join(map(str, error.errors()[0]["loc"])) or "content"


class RunFolder:
    """A run folder, which need not exist yet. Its attributes are paths."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / CONFIG  # all settings, as of the last start
        self.record = path / _RECORD  # name, prepared corpus, and the machine and versions of each start
        self.metrics = path / "metrics.jsonl"
        self.samples = path / "samples.jsonl"  # translations of validation sentences, at each validation
        self.skipped = path / "skipped.jsonl"  # updates without a finite gradient, with their sentences
        self.tensorboard = path / "tensorboard"
        self.all_checkpoints = path / "checkpoints"
        self.scores = self.all_checkpoints / "best.json"  # validation scores of the checkpoints, best first
        self.model = path / "model"  # the trained model
        self.translations = path / "translations"  # of validation and test sets, by the trained model
        self.tests = path / "tests"  # text of the test sets that were added after the corpus was prepared
        self.epochs = path / "epochs"  # while training runs with subword_sampling: the next epochs
        self.lock = path / ".lock"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of an update."""
        return self.all_checkpoints / f"step-{step:08d}"

    def average(self, n: int) -> Path:
        """Return the path of the average of the last n checkpoints, which `mt average` writes."""
        return self.path / "averages" / f"last-{n}"

    def translation(self, name: str) -> Path:
        """Return the path of the translation of a test set, or of `valid`."""
        return self.translations / f"{name}.txt"

    def added_test(self, name: str) -> Path:
        """Return the path of the text of a test set that was added to the run."""
        return self.tests / f"{name}.jsonl"

    def read_record(self) -> dict[str, Any] | None:
        """Read `run.json`; return None if the run was never started.

        Raises:
            CheckpointError: the file is damaged.
        """
        try:
            record: dict[str, Any] = read_json(self.record)
            _Record.model_validate(record)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            reason = f"unexpected {_place(error)}" if isinstance(error, ValidationError) else str(error)
            fix = "restore it from a copy, or start over with another --run-dir"
            raise CheckpointError(self.record, f"is damaged ({reason})", fix) from error
        return record

    def read_config(self) -> RunConfig:
        """Read the settings of the last start."""
        return load_config(str(self.config), is_stored=True)

    @property
    def added_tests(self) -> dict[str, Any]:
        """The facts about the test sets that were added after the corpus was prepared, by name."""
        found: dict[str, Any] = (self.read_record() or {}).get(ADDED_TESTS, {})
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Create the folder and lock it against a second training inside the block.

        If the folder is new, and still empty at the end because training could not start, it is removed.

        Raises:
            MTError: the folder cannot be written, or another process trains in it.
        """

        def refuse() -> NoReturn:
            fix = "wait for it, or use another --run-dir"
            raise MTError(self.path, "another training is running in this folder", fix)

        with ExitStack() as stack:
            try:
                if not self.path.exists():
                    self.path.mkdir(parents=True, exist_ok=True)
                    stack.callback(self._remove_if_empty)
                stack.enter_context(locked(self.lock, refuse))
            except OSError as error:
                problem = f"the run folder cannot be written ({error.strerror})"
                raise MTError(self.path, problem, "use another --run-dir") from error
            yield

    def _remove_if_empty(self) -> None:
        with suppress(OSError):
            self.path.rmdir()

    # --- checkpoints

    @property
    def n_updates(self) -> int:
        """The number of updates that are done, as of the last checkpoint."""
        return max([0, *map(checkpoint_step, self.checkpoints())])

    def limit_warning(self, max_steps: int) -> MTError | None:
        """Return a warning if the run has more updates than `train.max_steps`, so that nothing is left to train."""
        if (n := self.n_updates) <= max_steps:
            return None
        problem = f"training is already complete: {n:,} steps, more than train.max_steps ({max_steps:,})"
        return MTError("", problem, "raise train.max_steps to train further")

    @property
    def has_work(self) -> bool:
        """Return whether a start came as far as a checkpoint: from then on, the run keeps its data and settings."""
        return any(self.all_checkpoints.glob("step-*")) or self.model.is_dir()

    def checkpoints(self) -> list[Path]:
        """Return all checkpoints, oldest first."""
        if not self.all_checkpoints.is_dir():
            return []
        return sorted(path for path in self.all_checkpoints.iterdir() if re.fullmatch(r"step-\d{8,}", path.name))

    def scheduled_checkpoints(self, every: int) -> list[Path]:
        """Return the checkpoints that were written every `every` updates, and the last one, oldest first.

        Other checkpoints were written because they had the best score so far.
        """
        folders = self.checkpoints()
        return [folder for folder in folders if checkpoint_step(folder) % every == 0 or folder == folders[-1]]

    def best_checkpoints(self, n: int) -> list[Path]:
        """Return the n checkpoints with the best validation scores, or fewer if there are not as many; best first."""
        folders = [self.checkpoint(step) for step, *_ in self._ranking()]
        return [folder for folder in folders if folder.is_dir()][:n]

    def best_checkpoint(self) -> Path | None:
        """Return the checkpoint with the best validation score so far; None before the first validation."""
        return next(iter(self.best_checkpoints(1)), None)

    def record_score(self, step: int, score: float, by: Literal["bleu", "chrf", "loss"], chrf: float) -> int | None:
        """Add a validation score to the ranking, before the checkpoint of that update is written.

        Among equal scores, the one with the higher chrF2 ranks higher, then the earlier one. A score whose checkpoint
        was never written, because of a kill, is ignored.

        Returns:
            Its rank among the checkpoints, from 0; None for a score that is not finite, which is not added.
        """
        if not math.isfinite(score):
            return None
        others = [entry for entry in self._ranking() if entry[0] != step and self.checkpoint(entry[0]).is_dir()]
        higher_is_better = by != "loss"
        sign = -1 if higher_is_better else 1
        ranking = sorted([*others, (step, score, chrf)], key=lambda entry: (sign * entry[1], -entry[2], entry[0]))
        self.all_checkpoints.mkdir(parents=True, exist_ok=True)
        entries = [dict(zip(("step", "score", "chrf"), entry, strict=True)) for entry in ranking]
        write_json(self.scores, {"by": by, "higher_is_better": higher_is_better, "ranking": entries})
        return ranking.index((step, score, chrf))

    def _ranking(self) -> list[tuple[int, float, float]]:
        """Return step, score and chrF2 of each validation, best first."""
        try:
            ranking = _Ranking.model_validate(read_json(self.scores)).ranking
            return [(one.step, one.score, one.chrf) for one in ranking]
        except (OSError, ValueError):
            return []

    def prune_checkpoints(self, train: TrainConfig) -> None:
        """Remove the checkpoints that are not kept according to the settings."""
        last = self.scheduled_checkpoints(train.checkpoint_every)[-max(train.keep_last, train.average_last) :]
        kept = {*last, *self.best_checkpoints(train.keep_best)}
        for folder in self.checkpoints():
            if folder not in kept and not (train.keep_every and checkpoint_step(folder) % train.keep_every == 0):
                remove_folder(folder)

    def remove_leftovers(self) -> None:
        """Remove the temporary files of killed writes. Only the process that holds the lock may call this."""
        for folder in (self.path, self.all_checkpoints):
            remove_leftovers(folder)

    def model_is_outdated(self) -> bool:
        """Return whether training has continued since the run's model was made."""
        try:
            made_at = read_json(self.model / MANIFEST)[MADE_AT]
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return isinstance(made_at, int) and any(checkpoint_step(folder) > made_at for folder in self.checkpoints())


def checkpoint_step(folder: Path) -> int:
    """Return the number of the update after which a checkpoint was written."""
    return int(folder.name.removeprefix("step-"))


def schedule_start(checkpoint: ModelFolder, train: TrainConfig) -> int:
    """Return the number of updates before the schedule of `train` began, or begins if the checkpoint's is another."""
    if checkpoint.config.train.schedule_settings != train.schedule_settings:
        return checkpoint_step(checkpoint.path)
    start: int = checkpoint.manifest.get("schedule_start") or 0  # an earlier version did not write it
    return start


def quarantine_checkpoint(folder: Path) -> Path:
    """Rename a checkpoint that cannot be read, so that it is ignored; return its new path."""
    new_place = folder.with_name(f"{folder.name}.damaged")
    shutil.rmtree(new_place, ignore_errors=True)
    return folder.rename(new_place)


def open_model(path: str | PathLike[str]) -> ModelFolder:
    """Open the model that `--model` names: a model folder, a checkpoint, or a run's model or best checkpoint so far.

    Raises:
        CheckpointError: the folder has no complete model in a format that this version reads.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(path, "no such folder", ModelFolder.WHAT_TO_GIVE)
    if path.is_file():
        is_weights = path.suffix == ".safetensors"
        fix = f"give the folder that contains it ({path.parent})" if is_weights else ModelFolder.WHAT_TO_GIVE
        raise CheckpointError(path, "is a file, expected a folder", fix)
    run = RunFolder(path)
    if run.model.is_dir() and not run.model_is_outdated():
        return ModelFolder.open(run.model)
    has_begun = run.record.is_file() or run.lock.exists()  # locked: its data is being prepared
    if run.all_checkpoints.is_dir() or (has_begun and not (path / WEIGHTS).exists()):
        best = run.best_checkpoint() or next(reversed(run.checkpoints()), None)
        if best is None:
            raise CheckpointError(path, "this run has no checkpoint yet", "wait until training writes the first one")
        return ModelFolder.open(best)
    if inside := sorted(str(one) for one in path.iterdir() if (one / _RECORD).is_file() or (one / WEIGHTS).is_file()):
        choice = f"{', '.join(inside[:5])}{', …' if len(inside) > 5 else ''}"
        if not (path / WEIGHTS).exists():
            raise CheckpointError(path, "is not a model folder, but contains models", f"give one of {choice}")
    return ModelFolder.open(path)


def initial_model(config: RunConfig) -> ModelFolder | None:
    """Return the model that training starts from, if `train.init_from` names one.

    Raises:
        CheckpointError: see `open_model`.
        ConfigError: the config contradicts it; the message has every setting that does.
    """
    if config.train.init_from is None:
        return None
    folder = open_model(config.train.init_from)
    _check_against(folder, config)
    old_validation_sets(config)
    return folder


def old_validation_sets(config: RunConfig) -> dict[str, tuple[Direction, list[SentencePair]]]:
    """Return the sets that `train.max_loss_on_old` is about, with their directions; none if it is not set.

    They are the validation sets of the run that the initial model comes from, in the directions of this config.

    Raises:
        CheckpointError: see `open_model`.
        ConfigError: there are no such sets.
    """
    key = "train.max_loss_on_old"
    if config.train.max_loss_on_old is None or config.train.init_from is None:
        return {}
    initial = open_model(config.train.init_from)
    theirs = initial.config
    try:
        corpus = PreparedCorpus.open(Path(theirs.data.prepared_dir, str(initial.manifest.get("corpus_fingerprint"))))
    except DataError as error:
        problem = f"needs the validation text of {initial.path}, but its prepared corpus is gone ({error.statement})"
        raise ConfigError(key, problem, "restore it, or start without this setting") from error
    sets = {name: (theirs.valid_sets[name].direction, pairs) for name, pairs in corpus.valid_sets.items()}
    found = {name: one for name, one in sets.items() if one[0] in config.directions}
    if not found:
        has = listed(sorted({str(direction) for direction, _ in sets.values()}))
        problem = f"needs validation text of {initial.path} in a direction of this run; it has only {has}"
        raise ConfigError(key, problem, "remove this setting")
    return found


def _check_codes(folder: ModelFolder, config: RunConfig) -> None:
    """Raise a ConfigError if the config has another code for a language of this model: it would be a new language."""
    theirs, ours = ({*chain.from_iterable(one.directions)} for one in (folder.config, config))
    for lang, known in product(sorted(ours - theirs), sorted(theirs)):
        if closeness(lang, known) == 3:
            problem = f"the model in {folder.path} has the language {lang} under the code {known}"
            raise ConfigError("train.init_from", problem, f"write {known} in place of {lang}")


def _check_against(folder: ModelFolder, config: RunConfig) -> None:
    """Raise a ConfigError with every setting that cannot be as in the config if training starts from this model."""
    initial, tokenizers, tokenizer = folder.config, folder.load_tokenizers(), config.tokenizer
    theirs, ours = ({**one.model.shape, **one.tokenizer.kept} for one in (initial, config))
    if initial.tokenizer.model is not None:  # its tokenizer was given: these settings did not make it
        theirs |= {key: ours[key] for key in initial.tokenizer.kept if key != "tokenizer.joint"}
    sizes = map(of_both_sides, (folder.vocab_size, initial.tokenizer.vocab_sizes, tokenizer.vocab_sizes))
    for key, n_pieces, their_size, size in zip(
        ("tokenizer.vocab_size", "tokenizer.tgt_vocab_size"), *sizes, strict=True
    ):
        # If its tokenizer was given, that model's setting may differ from the size: both are accepted.
        theirs[key], ours[key] = size if size == their_size else n_pieces, size
    if tokenizer.joint:
        del ours["tokenizer.tgt_vocab_size"]
    missing = [
        symbol
        for vocabulary in vocabularies(config)
        for symbol in vocabulary.symbols
        if not tokenizers[vocabulary.sides[0]].has_symbol(symbol)
    ]
    unknown = [] if config.train.grow_vocab else missing
    theirs["tokenizer.user_symbols"] = [symbol for symbol in tokenizer.user_symbols if symbol not in unknown]
    ours |= {"tokenizer.user_symbols": list(tokenizer.user_symbols)}
    ours |= {"tokenizer.model": tokenizer.model, "tokenizer.tgt_model": tokenizer.tgt_model}
    ours |= {f"{key}.tag": entry.corpus.tag for key, entry in config.entries.items() if entry.corpus.tag in unknown}
    if initial.language_pieces:
        _check_codes(folder, config)
        for of_pieces, one in ((theirs, initial), (ours, config)):
            of_pieces |= {f"data.{name}": value for name, value in one.kept_pieces.items()}
    if not config.train.grow_vocab:
        unknown += [piece for piece in config.language_pieces if not tokenizers.src.has_control(piece)]
    wanted = [
        f"{key}: {as_yaml(theirs.get(key))} (here {as_yaml(value)})"
        for key, value in ours.items()
        if value != theirs.get(key)
    ]
    if wanted or unknown:
        parts = [f"the model in {folder.path} needs {', '.join(wanted)}"] if wanted else []
        if unknown:
            whose = "its tokenizer" if wanted else f"the tokenizer of the model in {folder.path}"
            parts.append(f"{whose} does not have {listed(list(dict.fromkeys(unknown)))}")
        fix = "set train.grow_vocab to add them"
        if wanted:
            them = "it" if len(wanted) == 1 else "them"
            also = ", or set train.grow_vocab to add what its tokenizer lacks" if unknown else ""
            fix = f"remove {them} from the config: what it lacks is taken from that model{also}"
        raise ConfigError("train.init_from", "; ".join(parts), fix)
