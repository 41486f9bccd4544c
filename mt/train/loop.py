"""The training procedure on one screen: `train`; and what it needs of a run folder."""

from __future__ import annotations

import json
import math
import signal
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mt.checkpoint import (
    ModelFolder,
    append_text,
    checkpoint_path,
    checkpoints,
    enter_score,
    find_model_folder,
    prune_checkpoints,
    remove_checkpoint,
    save_model_folder,
    set_aside,
)
from mt.config import RunConfig, parse_duration
from mt.configfile import as_yaml
from mt.data.packing import PlanState
from mt.errors import CheckpointError, ConfigError, TrainingError
from mt.runtime import ALONE, Ranks, give_back_free_memory, hardware, keep_large_blocks, source_commit, versions
from mt.text.corpus import PreparedCorpus
from mt.text.normalise import Normalisers
from mt.text.tokenizer import Tokenizer
from mt.train.engine import Engine, Outcome, OutOfMemory, Update
from mt.train.progress import Meter, Progress, Skipped
from mt.train.schedule import learning_rate
from mt.train.signals import Received, caught_signals
from mt.train.tracker import SilentTracker, Tracker
from mt.train.validation import ValidationResult, validate
from mt.units import format_count, format_duration

SKIPPED = "skipped.jsonl"  # in the run folder: the updates that were skipped, with their sentences

# Why training stops before its steps are up: the number of a signal, or this. The larger one counts among ranks.
GO_ON, TIME_IS_UP = 0, 1

LOOK_EVERY = 50  # updates; whether they were made at all is seen then, if not sooner


def train(config: RunConfig, corpus: PreparedCorpus, run_dir: Path, ranks: Ranks = ALONE) -> Progress:
    """Train until the steps or the time are up, from the last checkpoint if there is one.

    Raises:
        TrainingError: gradients stay non-finite although training went back once.
        KeyboardInterrupt, SystemExit(143): interrupted or terminated; a checkpoint has been written.
    """
    keep_large_blocks()
    run_dir.mkdir(parents=True, exist_ok=True)
    settings = config.train
    trainer = Trainer(config, corpus, run_dir, ranks)
    engine, progress = trainer.engine, trainer.progress
    if trainer.is_finished() and not trainer.validation_is_due():
        trainer.say_that_it_is_done()
        return progress
    with closing(trainer.tracker()) as tracker, caught_signals(ranks.is_first) as received:
        tracker.say(trainer.description)
        if trainer.validation_is_due():  # a signal came before it
            trainer.validate(tracker, received)
            trainer.save_checkpoint(tracker)
        ends = trainer.agrees_to_stop(received)
        while not ends:
            try:
                with trainer.updates_left() as updates:
                    for update in updates:
                        lr = learning_rate(update.step, settings, config.model.d_model)
                        trainer.count(update, engine.step(update, lr))
                        tracker.advance(update.step)
                        ends = trainer.agrees_to_stop(received)
                        is_logged = update.step % settings.log_every == 0
                        is_validated = trainer.validation_is_due() and not trainer.is_signalled
                        is_saved = ends or update.step % settings.checkpoint_every == 0
                        if is_logged or is_validated or is_saved or update.step % LOOK_EVERY == 0:
                            trainer.look(tracker)
                            if trainer.has_lost_its_way:
                                trainer.go_back(tracker)
                                ends = trainer.is_signalled
                                break  # on from there
                        if is_logged:
                            tracker.log(progress, learning_rate=lr, **trainer.meter.read())
                        with trainer.meter.paused():
                            if is_validated:
                                is_saved |= trainer.validate(tracker, received)
                                ends = trainer.agrees_to_stop(received)
                            if is_saved or ends:
                                trainer.save_checkpoint(tracker)
                        if ends:
                            break
            except OutOfMemory as error:
                trainer.double_slices(error, tracker)  # and the same update once more
        trainer.agrees_to_stop(received)  # a signal may have come during the last save
        trainer.say_how_it_ended(tracker)
    return progress


class Trainer:
    """A training in its run folder: the engine, how far it has come, and what is written.

    Raises:
        ConfigError: the model that training starts from is of another shape; a sentence for validation is too long.
        CheckpointError: there are checkpoints, but none can be read, or they are of another model.
    """

    def __init__(self, config: RunConfig, corpus: PreparedCorpus, run_dir: Path, ranks: Ranks = ALONE) -> None:
        self.config, self.corpus, self.run_dir, self.ranks = config, corpus, run_dir, ranks
        self.tokenizer = Tokenizer.load(corpus.tokenizer_path)
        self.engine = Engine(
            config, corpus.train, self.tokenizer.vocab_size, source_sizes=corpus.source_sizes, ranks=ranks
        )
        n_positions = self.engine.model.positions.n_positions
        longest = max(int(side.lengths.max(initial=0)) for side in (corpus.valid.src, corpus.valid.tgt))
        if longest > (n_positions or longest):
            raise ConfigError(
                f"model.n_positions: is {n_positions:,}, and a sentence for validation has {longest:,} tokens: raise "
                "it, or leave that sentence out"
            )
        self.progress = self._resume()
        setting = config.train.micro_batch_tokens
        is_resolved = self.progress.micro_batch_setting == setting
        self.progress.micro_batch_tokens = self.engine.begin(self.progress.micro_batch_tokens if is_resolved else 0)
        self.progress.micro_batch_setting = setting
        self.meter = Meter(ranks, self.progress, self.engine.optimizer.scales_loss, self.engine.peak_seconds)
        self._manifest = {
            "vocab_size": self.tokenizer.vocab_size,
            "corpus_fingerprint": corpus.fingerprint,
            "versions": versions(),
            "hardware": hardware(self.engine.device),
            "commit": source_commit(),
        }
        self._began_at = time.monotonic() - self.progress.train_seconds
        self._stop = TIME_IS_UP if self._seconds_left is not None and self._seconds_left <= 0 else GO_ON

    @property
    def description(self) -> str:
        """What is about to run, in one line."""
        engine, progress = self.engine, self.progress
        start = f"from {self.config.train.init_from}" if self.config.train.init_from else "from scratch"
        start = f"from step {progress.step:,}" if progress.step else start
        on = f"{engine.device}" if self.ranks.n == 1 else f"{self.ranks.n} ranks ({engine.device.type})"
        n_slices, updates_per_epoch = engine.budget.n_slices, engine.plan.updates_per_epoch()
        return (
            f"training {start}: {format_count(engine.model.n_parameters)} parameters on {on} in "
            f"{engine.note}, {engine.plan.batch_tokens:,} target tokens an update in {n_slices} "
            f"slice{'s' if n_slices > 1 else ''}{engine.memory_note}, {updates_per_epoch:,.0f} updates an epoch"
        )

    def tracker(self) -> Tracker | SilentTracker:
        """Rank 0 tells; the others are silent."""
        if not self.ranks.is_first:
            return SilentTracker()
        return Tracker(self.run_dir, self.progress.step, self.config.train.max_steps, self._seconds_left)

    def updates_left(self) -> AbstractContextManager[Iterable[Update]]:
        """All updates that are left, from where the plan stands."""
        progress = self.progress
        return self.engine.updates_ahead(progress.plan_state, progress.step + 1, self.config.train.max_steps)

    # --- when to stop

    def agrees_to_stop(self, received: Received) -> bool:
        """Whether training ends here: finished, or stopped by a signal. The ranks agree on signals and time."""
        if self._stop == GO_ON and self._seconds_left is not None and self._seconds_left <= 0:
            self._stop = TIME_IS_UP
        self._stop = self.ranks.largest(max(self._stop, received.number or GO_ON))
        return self.is_signalled or self.is_finished()

    @property
    def is_signalled(self) -> bool:
        """Whether a signal to stop has come to any rank."""
        return self._stop > TIME_IS_UP

    def is_finished(self) -> bool:
        """Whether the steps, the time or the patience are up."""
        settings, progress = self.config.train, self.progress
        out_of_patience = settings.patience is not None and progress.n_without_better >= settings.patience
        return progress.step > 0 and (
            progress.step >= settings.max_steps or self._stop == TIME_IS_UP or out_of_patience
        )

    @property
    def _seconds_left(self) -> float | None:
        """Until `stop_after`, as of the last update; None without it."""
        limit = self.config.train.stop_after
        return None if limit is None else parse_duration(limit) - self.progress.train_seconds

    # --- updates

    def count(self, update: Update, outcome: Outcome) -> None:
        """Enter an update that has been made."""
        progress, n_ranks = self.progress, self.ranks.n
        progress.step, progress.plan_state = update.step, update.next_state
        progress.n_src_tokens += update.n_src_tokens
        progress.n_tgt_tokens += update.n_tgt_tokens
        # Each rank has as many slices, of about the same shape.
        progress.n_src_positions += n_ranks * sum(len(batch.src_ids) for batch in update.slices.values())
        progress.n_tgt_positions += n_ranks * sum(len(batch.tgt_inputs) for batch in update.slices.values())
        progress.train_seconds = time.monotonic() - self._began_at
        self.meter.add(update, outcome)

    def double_slices(self, error: OutOfMemory, tracker: Tracker | SilentTracker) -> None:
        """Cut updates into twice as many slices, for the device has no memory for those of now.

        Raises:
            ConfigError: slices cannot be smaller, or other ranks wait in the middle of the update.
        """
        before = self.engine.budget
        halved = self.engine.halve_slices()
        found = f"out of memory on {self.engine.device} with slices of {before.tgt_tokens:,} target tokens ({error})"
        if not halved:
            raise ConfigError(
                f"train.micro_batch_tokens: {found}, which hold the longest sentence alone: set "
                "train.activation_checkpointing, lower data.max_tokens, or make the model smaller"
            )
        if self.ranks.n > 1:
            raise ConfigError(f"train.micro_batch_tokens: rank {self.ranks.rank} is {found}: set it to {halved}")
        self.progress.micro_batch_tokens = halved
        tracker.say(
            f"warning: {found}: the update is made again in {self.engine.budget.n_slices} slices of {halved:,}, and so "
            f"are those after it; --set train.micro_batch_tokens={halved} begins with that"
        )

    def look(self, tracker: Tracker | SilentTracker) -> None:
        """Wait for the device, enter what it has done, and tell of skipped updates."""
        skipped = self.meter.settle()
        if not (skipped and self.ranks.is_first):
            return
        path = self.run_dir / SKIPPED
        append_text(path, "".join(json.dumps(self._named(each)) + "\n" for each in skipped))
        first, last = skipped[0].step, skipped[-1].step
        steps = f"step {first:,} was" if first == last else f"{len(skipped):,} of steps {first:,} to {last:,} were"
        tracker.say(f"warning: {steps} skipped, for the gradient was not finite: {path} names the sentences")

    @property
    def has_lost_its_way(self) -> bool:
        """Whether too many updates in a row were skipped, the last one among them."""
        return self.progress.n_skipped_in_row >= self.config.train.skips_before_rollback

    def _named(self, skipped: Skipped) -> dict[str, Any]:
        """A line of `skipped.jsonl`: the sentences by source and line, as the user knows them."""
        starts = np.cumsum([0, *self.corpus.source_sizes])
        lines = self.corpus.train_lines
        sources = [
            {"source": source.description, "lines": sorted(lines[skipped.suspects[is_inside]].tolist())}
            for source, start, stop in zip(self.config.data.train, starts[:-1], starts[1:], strict=True)
            if (is_inside := (skipped.suspects >= start) & (skipped.suspects < stop)).any()
        ]
        losses = [loss if math.isfinite(loss) else None for loss in skipped.losses]
        return {"step": skipped.step, "slice_losses": losses, "sentences": sources}

    def go_back(self, tracker: Tracker | SilentTracker) -> None:
        """Load the last checkpoint that has no skipped updates at its end; pass over the sentences since, once.

        Raises:
            TrainingError: that has been done before, from the same checkpoint.
        """
        progress = self.progress
        found = self._load_last(lambda saved: saved.n_skipped_in_row == 0)
        target = found or Progress()
        row = f"{progress.n_skipped_in_row:,} updates in a row up to step {progress.step:,} had no finite gradient"
        if progress.gone_back_to == target.step:
            raise TrainingError(
                f"{self.run_dir}: {row}, although training had gone back to step {target.step:,} before and left the "
                f"sentences since then out: go on with --set train.precision=fp32, or start over with a lower "
                f"train.peak_lr or with train.clip_norm; {SKIPPED} there names the sentences"
            )
        if found is None:
            self.engine.restart()
            if self.config.train.init_from is not None:
                self._start_from(ModelFolder.open(find_model_folder(Path(self.config.train.init_from))))
        passed = f"steps {target.step + 1:,} to {progress.step:,}"
        if self.ranks.is_first:
            for folder in checkpoints(self.run_dir):
                if folder > checkpoint_path(self.run_dir, target.step):
                    remove_checkpoint(folder)
        kept = ("plan_state", "train_seconds", "micro_batch_tokens", "micro_batch_setting", "n_skipped")
        vars(progress).update({name: value for name, value in vars(target).items() if name not in kept})
        progress.gone_back_to = target.step
        self.meter.forget()
        tracker.go_back(target.step)
        if found is not None:
            self.save_checkpoint(tracker)  # or a kill would forget what was passed over
        tracker.say(f"warning: {row}: back to step {target.step:,}, and on with the sentences after those of {passed}")

    # --- validation

    def validation_is_due(self) -> bool:
        """Whether the validation set is to be measured after this update, and has not been."""
        step = self.progress.step
        is_due = step > 0 and (step % self.config.train.validate_every == 0 or self.is_finished())
        return is_due and self.progress.validated_at != step

    def validate(self, tracker: Tracker | SilentTracker, received: Received) -> bool:
        """Measure the validation set, tell the result, remember it; True where it is among the best that are kept.

        Rank 0 measures; a signal cuts it short, and the next start makes up for it.
        """
        result: ValidationResult | None = None
        if self.ranks.is_first:
            with received.interrupting():
                received.interrupt_if_any()
                result = self._measured()
            give_back_free_memory()
        score, is_kept = self.ranks.from_first(None if result is None else self._entered(result)) or (None, False)
        if score is None:
            return False
        if result is not None:
            tracker.log_validation(self.progress, result)
        progress = self.progress
        progress.validated_at = progress.step
        if not math.isfinite(score) or (progress.best_step is not None and score <= progress.best_score):
            progress.n_without_better += 1
        else:
            progress.best_step, progress.best_score, progress.n_without_better = progress.step, score, 0
        return bool(is_kept)

    def _entered(self, result: ValidationResult) -> tuple[float, bool]:
        """The score, more being better, and whether its checkpoint is to be kept."""
        settings = self.config.train
        by_bleu = settings.best_by == "bleu"
        score = result.bleu if by_bleu else result.loss
        standing = enter_score(
            self.run_dir,
            self.progress.step,
            score,
            by=settings.best_by,
            higher_is_better=by_bleu,
            n_best=settings.keep_best,
        )
        return score if by_bleu else -score, standing.is_among_best

    def _measured(self) -> ValidationResult:
        return validate(
            self.engine.inference_model(),
            self.tokenizer,
            self.corpus.valid,
            self.corpus.valid_pairs,
            replace(self.config.decode, beam_size=self.config.train.validation_beam_size),
            self.config.data.max_tokens,
            Normalisers.of_run(self.config),
        )

    # --- checkpoints

    def save_checkpoint(self, tracker: Tracker | SilentTracker) -> None:
        """Write the checkpoint of this step, and remove those that are not needed."""
        self.look(tracker)  # what is pending belongs to it
        self.progress.train_seconds = time.monotonic() - self._began_at
        if self.ranks.is_first:
            self._write_checkpoint()
        self.ranks.from_first(None)  # a rank that ended meanwhile would have torchrun end rank 0 too

    def _write_checkpoint(self) -> None:
        settings = self.config.train
        save_model_folder(
            checkpoint_path(self.run_dir, self.progress.step),
            self.engine.weights_for_use,
            self.config,
            self.corpus.tokenizer_path,
            {
                **self._manifest,
                "step": self.progress.step,
                "n_tgt_tokens": self.progress.n_tgt_tokens,
                "train_seconds": self.progress.train_seconds,
            },
            {**self.engine.state_dict(), "progress": asdict(self.progress)},
        )
        if self.progress.n_skipped_in_row:
            return  # the checkpoint to go back to may be an older one
        prune_checkpoints(
            self.run_dir,
            settings.checkpoint_every,
            keep_last=max(settings.keep_last, settings.average_last),
            keep_best=settings.keep_best,
            keep_every=settings.keep_every,
        )

    def _resume(self) -> Progress:
        """Go on from the last checkpoint that can be read, or begin."""
        found = self._load_last(lambda saved: True)
        if found is None and self.config.train.init_from is not None:
            self._start_from(ModelFolder.open(find_model_folder(Path(self.config.train.init_from))))
        return found or Progress()

    def _load_last(self, is_wanted: Callable[[Progress], bool]) -> Progress | None:
        """Load the last checkpoint that can be read and is wanted; None where there is none.

        Rank 0 chooses, and sets those aside that are damaged.
        """
        progress, step = None, None
        if self.ranks.is_first:
            progress = self._search(is_wanted)
            step = None if progress is None else progress.step
        step = self.ranks.from_first(step)
        if step is not None and not self.ranks.is_first:
            saved = SavedRun.read(checkpoint_path(self.run_dir, step))
            self.engine.load(saved.weights, saved.state, self.run_dir)
            progress = saved.progress
        return progress

    def _search(self, is_wanted: Callable[[Progress], bool]) -> Progress | None:
        damaged: list[tuple[Path, CheckpointError]] = []
        for folder in reversed(checkpoints(self.run_dir)):
            try:
                saved = SavedRun.read(folder)
            except CheckpointError as error:
                damaged.append((folder, error))
                continue
            if not is_wanted(saved.progress):
                continue
            self.engine.load(saved.weights, saved.state, folder)
            for damaged_folder, problem in damaged:
                aside = set_aside(damaged_folder)
                print(
                    f"warning: {problem}: going back to the checkpoint before; it is now {aside}",
                    file=sys.stderr,
                    flush=True,
                )
            return saved.progress
        if damaged:
            raise CheckpointError(
                f"{self.run_dir}: no checkpoint to go on from can be read; the last: {damaged[0][1]}: "
                "start over with another --run-dir"
            )
        return None

    def _start_from(self, folder: ModelFolder) -> None:
        """Take the weights of another model; optimizer and plan begin anew.

        Raises:
            ConfigError: it is of another shape.
        """
        theirs, ours = folder.config.model.shape, self.config.model.shape
        if differing := [key for key in ours if ours[key] != theirs[key]]:
            wanted = ", ".join(f"{key}: {as_yaml(theirs[key])} (here {as_yaml(ours[key])})" for key in differing)
            raise ConfigError(f"train.init_from: the model in {folder.path} needs {wanted}: change what differs")
        self.engine.load(folder.load_weights(), None, folder.path)

    # --- for people

    def say_that_it_is_done(self) -> None:
        """That there is nothing left to train."""
        max_steps, step = self.config.train.max_steps, self.progress.step
        beyond = f", beyond train.max_steps ({max_steps:,})" if step > max_steps else ""
        if self.ranks.is_first:
            print(f"trained already: {step:,} steps{beyond}", file=sys.stderr, flush=True)

    def say_how_it_ended(self, tracker: Tracker | SilentTracker) -> None:
        """What was trained, and why no more.

        Raises:
            KeyboardInterrupt, SystemExit(143): a signal ended it.
        """
        progress, patience = self.progress, self.config.train.patience
        if self.is_signalled:
            saved = f"stopped after step {progress.step:,}, all of it saved in {self.run_dir}"
            saved = saved if progress.step else "stopped before the first step"
            tracker.say(f"{saved}: the same command goes on from there")
            raise KeyboardInterrupt if self._stop == signal.SIGINT else SystemExit(128 + self._stop)
        if patience is not None and progress.n_without_better >= patience:
            best = "" if progress.best_step is None else f" than that of step {progress.best_step:,}"
            tracker.say(f"{progress.n_without_better} validations without a better score{best}")
        tracker.say(
            f"trained {progress.step:,} steps, {progress.n_tgt_tokens:,} target tokens, "
            f"in {format_duration(progress.train_seconds)}; {progress.fill}"
        )


@dataclass(frozen=True)
class SavedRun:
    """What a checkpoint holds of a run."""

    weights: dict[str, Tensor]
    state: dict[str, Any]
    progress: Progress

    @classmethod
    def read(cls, folder: Path) -> SavedRun:
        """All of it, from files that are whole.

        Raises:
            CheckpointError: something is missing or damaged.
        """
        opened = ModelFolder.open(folder)
        weights, state = opened.load_weights(), opened.load_training_state()
        saved = dict(state["progress"])
        return cls(weights, state, Progress(**{**saved, "plan_state": PlanState(**saved["plan_state"])}))
