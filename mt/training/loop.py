"""The training procedure: `train` is the whole of it on one screen, `Trainer` has its steps."""

from __future__ import annotations

import json
import logging
import math
import shutil
import signal
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mt.checkpoint import ModelFolder, save_model_folder
from mt.config.settings import RunConfig, TrainConfig, parse_duration
from mt.data.epochs import SampledEpochs, Sampling
from mt.decode.translator import Translator
from mt.errors import CheckpointError, ConfigError, TrainingError
from mt.evaluation.tokenization import chosen_tokenizers
from mt.model.transformer import grown_weights
from mt.run_folder import RunFolder, initial_model, old_validation_sets, quarantine_checkpoint, schedule_start
from mt.system.device import hardware
from mt.system.distributed import SINGLE_PROCESS, Ranks
from mt.system.files import append_text, remove_folder
from mt.system.malloc import trim_heap, tune_malloc
from mt.system.provenance import n_cores, source_commit, versions
from mt.system.signals import Received, caught_signals
from mt.text.corpora import readers_of
from mt.text.corpus import PreparedCorpus
from mt.text.growth import spellings
from mt.text.sentences import UsualLines
from mt.text.tokenizer import Tokenizers
from mt.training.budget import BudgetPlan, Costs, Stopwatch, budget_seconds
from mt.training.engine import UPDATES_ON_DEVICE, Engine, OutOfMemory, StepResult, Update
from mt.training.optimizer import learning_rate, peak_lr
from mt.training.progress import Progress, UpdateMeter
from mt.training.tracker import SilentTracker, Tracker
from mt.training.validation import OldSets, ValidationResult, mean_bleu, validate, validation_costs
from mt.units import format_count, format_duration

_log = logging.getLogger(__name__)

# Why training stops before its last step: one of these, or the number of a signal. The largest of all ranks counts.
NO_STOP, TIME_LIMIT = 0, 1

Saved = tuple[dict[str, Tensor], dict[str, Any], Progress]  # weights, training state and progress of a checkpoint

ZERO_BLEU = 0.005  # lower scores are printed as 0.00, and count as 0
MAX_ENCODERS = 8  # processes that encode the next epoch, for a GPU
FLUSH_EVERY = 50  # updates; skipped updates are noticed then at the latest


def train(config: RunConfig, corpus: PreparedCorpus, run_dir: Path, ranks: Ranks = SINGLE_PROCESS) -> Progress:
    """Train, from the last checkpoint if there is one, until the end of the steps, the time or the patience.

    Raises:
        TrainingError: gradients are still NaN or infinite after a rollback.
        KeyboardInterrupt, SystemExit(143): a signal stopped training; a checkpoint has been written.
    """
    tune_malloc()
    run_dir.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, corpus, RunFolder(run_dir), ranks)
    if trainer.is_finished() and not trainer.validation_is_due():
        trainer.report_already_done()
        return trainer.progress
    with trainer.running(), closing(trainer.updates()) as updates:
        for lr in updates:
            if trainer.flush_is_due():
                trainer.flush_metrics()
                if trainer.must_roll_back:
                    trainer.roll_back()
                    continue
                trainer.lay_out()
            trainer.log(lr)
            with trainer.meter.paused():
                is_kept = trainer.validation_is_due() and trainer.validate()
                if is_kept or trainer.save_is_due():
                    trainer.save_checkpoint()
        trainer.report_result()
    return trainer.progress


class Trainer:
    """A training run: its engine, its progress, and the files in its run folder.

    Raises:
        ConfigError: the model in `train.init_from` has another shape, or a validation sentence is too long.
        CheckpointError: there are checkpoints, but none can be read, or they belong to another model.
    """

    def __init__(
        self, config: RunConfig, corpus: PreparedCorpus, run: RunFolder, ranks: Ranks = SINGLE_PROCESS
    ) -> None:
        self.config, self.corpus, self.run, self.ranks = config, corpus, run, ranks
        self.tokenizers = Tokenizers.load(corpus.tokenizer_paths)
        self.engine = Engine(
            config, corpus.train, self.tokenizers.vocab_size, corpus_sizes=corpus.corpus_sizes, ranks=ranks
        )
        n_positions = self.engine.model.positions.n_positions
        longest = max(int(side.lengths.max(initial=0)) for side in (corpus.valid.src, corpus.valid.tgt))
        if longest > (n_positions or longest):
            problem = f"is {n_positions:,}, but a validation sentence has {longest:,} tokens"
            raise ConfigError("model.n_positions", problem, "raise it, or remove that sentence")
        found = self._load_last(lambda saved: True)
        if found is None:
            self._take_first_weights()
        self.progress = found or Progress()
        self._take_bleu_tokenizer()
        setting = config.train.micro_batch_tokens
        is_resolved = self.progress.micro_batch_setting == setting
        self.engine.begin(self.progress.micro_batch_tokens if is_resolved else 0)
        self.progress.micro_batch_tokens = self.engine.micro_batch_tokens
        self.progress.micro_batch_setting = setting
        self.meter = UpdateMeter(ranks, self.progress, self.engine.optimizer.scales_loss, self.engine.peak_seconds)
        sizes, src_langs = corpus.corpus_sizes, [entry.direction.src for entry in config.training]
        self.usual_lines = UsualLines.of_corpus(
            corpus.train, sizes, config.weights(sizes), self.tokenizers.src, src_langs
        )
        self._manifest = {
            "vocab_size": self.tokenizers.vocab_size,
            UsualLines.KEY: asdict(self.usual_lines),
            "corpus_fingerprint": corpus.fingerprint,
            "versions": versions(),
            "hardware": hardware(self.engine.device),
            "commit": source_commit(),
        }
        self._started_at = time.monotonic() - self.progress.train_seconds
        self._stopwatch = Stopwatch()
        self._stop = TIME_LIMIT if self._seconds_left <= 0 else NO_STOP
        self._first_step = self.progress.step + 1
        self.stops_here = False  # training ends after this update
        # Set while training runs. Only rank 0 logs and writes.
        self.tracker: Tracker | SilentTracker = SilentTracker()
        self.old_sets: OldSets = {}  # of train.max_loss_on_old
        self.signals = Received()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Record measurements and catch signals. A validation that an earlier start did not finish comes first."""
        self._begin_budget()
        self.engine.n_bidirectional = self._n_bidirectional
        if self.ranks.is_first:
            if self.progress.step == 0:
                self.run.skipped.unlink(missing_ok=True)  # of an earlier start without a checkpoint
            last_step, updates_per_epoch = self.config.train.last_step, self.engine.plan.updates_per_epoch()
            self.old_sets = old_validation_sets(self.config)
            left = min(self._seconds_left, budget_seconds(self.config.train) - self.progress.train_seconds)
            self.tracker = Tracker(self.run, self.progress, last_step, updates_per_epoch, left)
        with closing(self.tracker), self._sampled_epochs(), caught_signals(self.ranks.is_first) as self.signals:
            self.tracker.say(self.description)
            if self.validation_is_due():
                self.validate()
                self.save_checkpoint()
            self.sync_stop()
            yield

    @contextmanager
    def _sampled_epochs(self) -> Iterator[None]:
        """Encode the epochs inside the block, with `train.subword_sampling`."""
        train, corpus, is_first = self.config.train, self.corpus, self.ranks.is_first
        if train.subword_sampling is None:
            yield
            return
        if is_first and self.progress.step == 0:
            shutil.rmtree(self.run.epochs, ignore_errors=True)  # of an earlier start, perhaps with another corpus
        dtype, limit = corpus.manifest["ids_dtype"], self.config.data.max_tokens
        sampling = Sampling(corpus.folder, dtype, corpus.tokenizer_paths, train.subword_sampling, train.seed, limit)
        n_workers = 1 if self.engine.device.type == "cpu" else min(max(n_cores() - 1, 1), MAX_ENCODERS)
        epochs = SampledEpochs(
            corpus.train,
            sampling,
            self.run.epochs,
            n_workers=n_workers if is_first else None,
            n_kept=UPDATES_ON_DEVICE + 1,
        )
        self.engine.pairs_of = epochs.pairs
        with closing(epochs):
            yield
        if is_first and self.is_finished():
            shutil.rmtree(self.run.epochs, ignore_errors=True)

    def updates(self) -> Generator[float, None, None]:
        """Run the remaining updates, and yield the learning rate of each.

        An update that runs out of memory is repeated in smaller micro-batches. After a rollback, the updates continue
        from the checkpoint.
        """
        settings, progress = self.config.train, self.progress
        while not self.stops_here:
            try:
                start = progress.plan_state, progress.step + 1, settings.last_step
                with self.engine.prefetched_updates(*start) as updates:
                    for update in updates:
                        lr = self._learning_rate(update.step)
                        self.record_update(update, self.engine.step(update, lr))
                        self.sync_stop()
                        yield lr
                        if self.stops_here or progress.step != update.step:  # the caller may have rolled back
                            break
            except OutOfMemory as error:
                self.tracker.say(f"warning: {self.engine.halve_micro_batches(error)}")
                progress.micro_batch_tokens = self.engine.micro_batch_tokens

    @property
    def description(self) -> str:
        """One line about the training that is about to start."""
        engine, progress = self.engine, self.progress
        start = f"from {self.config.train.init_from}" if self.config.train.init_from else "from scratch"
        start = f"from step {progress.step:,}" if progress.step else start
        if progress.step and progress.schedule_start == progress.step:
            start += ", where the learning rate schedule restarts"
        on = f"{engine.device}" if self.ranks.n == 1 else f"{self.ranks.n} ranks ({engine.device.type})"
        n, updates_per_epoch = engine.budget.n_micro_batches, engine.plan.updates_per_epoch()
        return (
            f"training {start}: {format_count(engine.model.n_parameters)} parameters on {on} in "
            f"{engine.note}, {engine.plan.batch_tokens:,} target tokens per update in {n} "
            f"micro-batch{'es' if n > 1 else ''}{engine.memory_note}, {updates_per_epoch:,.0f} updates per epoch"
        )

    # --- the schedule

    def _is_due(self, every: int) -> bool:
        return self.progress.step % every == 0

    def save_is_due(self) -> bool:
        """Return whether a checkpoint is due after this update: by the schedule, or because training ends."""
        return self.stops_here or self._is_due(self.config.train.checkpoint_every)

    def flush_is_due(self) -> bool:
        """Return whether to wait for the device after this update, and read the results of all updates so far."""
        is_shown = self._is_due(self.config.train.log_every) or self.progress.step == self._first_step
        is_needed = self.validation_is_due() or self.save_is_due() or self._is_layout_due()
        return is_shown or is_needed or self._is_due(FLUSH_EVERY)

    def _learning_rate(self, step: int) -> float:
        train, d_model, plan = self.config.train, self.config.model.d_model, self.progress.budget_plan
        if plan is None:
            return learning_rate(step, train, d_model, self.progress.schedule_start)
        return peak_lr(train, d_model) * plan.share_of_peak(step, train.final_lr_share)

    # --- the budget

    def _begin_budget(self) -> None:
        """Estimate the costs of validation and evaluation, for the budget of a new run."""
        if self.config.train.budget is None or self.progress.budget_plan is not None:
            return
        seconds = 0.0, 0.0
        if self.ranks.is_first:
            model = self.engine.inference_model()
            seconds = validation_costs(model, self.tokenizers, self.corpus, self.config)
        validation, evaluation = self.ranks.from_first(seconds)
        costs = Costs(update=0.0, validation=validation, save=0.0, evaluation=evaluation)
        self.progress.budget_plan = BudgetPlan(self.config.train.warmup_steps, costs)

    def _n_bidirectional(self) -> float:
        """Return the number of updates with both directions; before a budget is laid out, all are."""
        train, plan = self.config.train, self.progress.budget_plan
        n_updates = train.max_steps if plan is None else plan.first_end or math.inf
        return train.bidirectional_share * n_updates if train.bidirectional_share else 0

    def _is_layout_due(self) -> bool:
        plan = self.progress.budget_plan
        return plan is not None and self.progress.step >= plan.next_at and not self.stops_here

    def lay_out(self) -> None:
        """Lay out the rest of the training over the rest of its budget, if it is time to. Rank 0 decides.

        Raises:
            ConfigError: the budget is too short.
        """
        plan, progress = self.progress.budget_plan, self.progress
        if plan is None or not self._is_layout_due():
            return
        left = budget_seconds(self.config.train) - (time.monotonic() - self._started_at)
        costs, left = self.ranks.from_first((self._stopwatch.costs(progress.step, plan.costs), left))
        progress.budget_plan = plan.laid_out(progress.step, left, costs, self.config.train)
        self.sync_stop()

    # --- what is due

    def log(self, lr: float) -> None:
        """Record loss and speed every `log_every` updates. After the first update, show them without recording."""
        if self._is_due(self.config.train.log_every):
            self.tracker.log(learning_rate=lr, **self.meter.read())
        elif self.progress.step == self._first_step:
            self.tracker.show(learning_rate=lr, **self.meter.peek())

    # --- when to stop

    def sync_stop(self) -> None:
        """Let the ranks agree on whether training ends here: it is finished, or one of them has received a signal."""
        if self._stop == NO_STOP and self._seconds_left <= 0:
            self._stop = TIME_LIMIT
        self._stop = self.ranks.largest(max(self._stop, self.signals.number or NO_STOP))
        self.stops_here = self.is_signalled or self.is_finished()

    @property
    def is_signalled(self) -> bool:
        """Return whether any rank has received a signal to stop."""
        return self._stop > TIME_LIMIT

    def is_finished(self) -> bool:
        """Return whether `max_steps`, `stop_after`, `budget` or `patience` has been reached."""
        settings, progress = self.config.train, self.progress
        last_step = (progress.budget_plan and progress.budget_plan.end) or settings.last_step
        out_of_patience = settings.patience is not None and progress.n_without_better >= settings.patience
        return progress.step > 0 and (progress.step >= last_step or self._stop == TIME_LIMIT or out_of_patience)

    @property
    def _too_many_note(self) -> str:
        """A text for after the number of steps, if an earlier start with a higher `max_steps` has trained more."""
        max_steps = self.config.train.last_step
        return f", more than train.max_steps ({max_steps:,})" if self.progress.step > max_steps else ""

    @property
    def _time_limit_note(self) -> str:
        """A text for after the number of steps, if `stop_after` ended training before `max_steps`."""
        limit, max_steps = self.config.train.stop_after, self.config.train.max_steps
        if limit is None or self._stop != TIME_LIMIT or self.progress.step >= max_steps:
            return ""
        return f" of {max_steps:,}, because of train.stop_after ({limit}): raise it to continue"

    @property
    def _seconds_left(self) -> float:
        """Time until `stop_after`, or until the last validation of a budget, as of the last update."""
        limit, plan = self.config.train.stop_after, self.progress.budget_plan
        if plan is not None and plan.end is not None:
            return budget_seconds(self.config.train) - plan.costs.after(self.config.train) - self.progress.train_seconds
        return math.inf if limit is None else parse_duration(limit) - self.progress.train_seconds

    # --- updates

    def record_update(self, update: Update, result: StepResult) -> None:
        """Add an update to the progress and the measurements."""
        progress, n_ranks = self.progress, self.ranks.n
        progress.step, progress.plan_state = update.step, update.next_state
        progress.n_src_tokens += update.n_src_tokens
        progress.n_tgt_tokens += update.n_tgt_tokens
        # All ranks have the same number of micro-batches, of about the same shape.
        progress.n_src_positions += n_ranks * sum(len(batch.src_ids) for batch in update.micro_batches.values())
        progress.n_tgt_positions += n_ranks * sum(len(batch.tgt_inputs) for batch in update.micro_batches.values())
        progress.train_seconds = time.monotonic() - self._started_at
        self.meter.add(update, result)
        self._stopwatch.begin_after(update.step)
        self.tracker.advance()

    def flush_metrics(self) -> None:
        """Wait for the device, add its results to the progress, and report skipped updates."""
        skipped = self.meter.flush()
        if not (skipped and self.ranks.is_first):
            return
        append_text(self.run.skipped, "".join(json.dumps(self._skipped_record(*each)) + "\n" for each in skipped))
        first, last = skipped[0][0].step, skipped[-1][0].step
        steps = f"step {first:,} was" if first == last else f"{len(skipped):,} of steps {first:,} to {last:,} were"
        self.tracker.say(
            f"warning: {steps} skipped because of NaN or infinite gradients; {self.run.skipped} lists the sentences"
        )

    @property
    def must_roll_back(self) -> bool:
        """Return whether the last `skips_before_rollback` updates were all skipped."""
        return self.progress.n_skipped_in_row >= self.config.train.skips_before_rollback

    def _skipped_record(self, skipped: Update, losses: list[float]) -> dict[str, Any]:
        """Return a record of `skipped.jsonl`, with the corpus and line number of each sentence.

        It has the sentences of the micro-batches whose loss is not finite, or all sentences if all losses are finite
        and only the gradient is not.
        """
        finite_losses = [loss if math.isfinite(loss) else None for loss in losses]
        parts = [part for part, loss in zip(skipped.sentences, finite_losses, strict=True) if loss is None]
        suspects = np.sort(np.concatenate(parts or skipped.sentences))
        borders = np.searchsorted(suspects, np.cumsum(self.corpus.corpus_sizes)[:-1])
        names = [reader.name for key, reader in readers_of(self.config).items() if key.startswith("data.train.")]
        by_corpus = zip(names, np.split(suspects, borders), strict=True)
        lines = self.corpus.train_lines
        sources = [{"source": name, "lines": sorted(lines[i].tolist())} for name, i in by_corpus if len(i)]
        return {"step": skipped.step, "micro_batch_losses": finite_losses, "sentences": sources}

    def roll_back(self) -> None:
        """Load the last checkpoint from before the skipped updates, and leave out the sentences used since then.

        Raises:
            TrainingError: training was rolled back to the same checkpoint before.
        """
        progress = self.progress
        found = self._load_last(lambda saved: saved.n_skipped_in_row == 0)
        target = found or Progress()
        problem = (
            f"the {progress.n_skipped_in_row:,} updates up to step {progress.step:,} had NaN or infinite gradients"
        )
        if progress.gone_back_to == target.step:
            problem += f", and a rollback to step {target.step:,} without the sentences used since then did not help"
            restart = "start over with a lower train.peak_lr or with train.clip_norm"
            fix = f"continue with --set train.precision=fp32, or {restart}; {self.run.skipped.name} lists the sentences"
            raise TrainingError(self.run.path, problem, fix)
        if found is None:
            self.engine.restart()
            self._take_first_weights()
        left_out = f"steps {target.step + 1:,} to {progress.step:,}"
        if self.ranks.is_first:
            for folder in self.run.checkpoints():
                if folder > self.run.checkpoint(target.step):
                    remove_folder(folder)
        kept = ("plan_state", "budget_plan", "train_seconds", "micro_batch_tokens", "micro_batch_setting", "n_skipped")
        vars(progress).update({name: value for name, value in vars(target).items() if name not in kept})
        progress.gone_back_to = target.step
        self.meter.reset()
        self._stopwatch = Stopwatch()
        self.tracker.roll_back()
        if found is not None:
            self.save_checkpoint()  # otherwise a start after a kill would use the skipped sentences again
        action = f"Training was rolled back to step {target.step:,} and leaves out the sentences of {left_out}"
        self.tracker.say(f"warning: {problem}. {action}")
        self.stops_here = self.is_signalled

    # --- validation

    def validation_is_due(self) -> bool:
        """Return whether a validation is due after this update and has not been done yet."""
        step = self.progress.step
        is_due = step > 0 and (self._is_due(self.config.train.validate_every) or self.is_finished())
        return is_due and self.progress.validated_at != step and not self.is_signalled

    def validate(self) -> bool:
        """Validate and record the result; return whether this is one of the `keep_best` best checkpoints.

        Only rank 0 validates. A signal interrupts it; the next start then repeats the validation.
        """
        result: ValidationResult | None = None
        if self.ranks.is_first:
            with self._stopwatch.timing("validation"), self.signals.interrupting():
                self.signals.interrupt_if_any()
                model, old = self.engine.inference_model(), (self.old_sets, self._initial_bleu())
                result = validate(model, self.tokenizers, self.corpus, self.config, self.usual_lines, *old)
            trim_heap()
        found = self.ranks.from_first(None if result is None else self._record_score(result))
        if found is None:
            self.sync_stop()
            return False
        score, chrf, is_kept = found
        if result is not None:
            self.tracker.log_validation(result)
        progress = self.progress
        progress.validated_at = progress.step
        best = (-math.inf, 0.0) if progress.best_step is None else (progress.best_score, progress.best_chrf)
        if math.isfinite(score) and (score, chrf) > best:
            progress.best_step, progress.best_score, progress.best_chrf = progress.step, score, chrf
            progress.n_without_better = 0
        elif (
            progress.step - progress.schedule_start > self.config.train.warmup_steps and best[0] != 0.0
        ):  # 0: BLEU does not show progress yet
            progress.n_without_better += 1
        self.sync_stop()  # patience may be exhausted, or a signal may have arrived
        return bool(is_kept)

    def _initial_bleu(self) -> float:
        """Return the BLEU of the initial model on the sets of `train.max_loss_on_old`, measured at first use."""
        train, progress = self.config.train, self.progress
        if self.old_sets and train.init_from and progress.old_bleu is None:
            loaded = Translator.load(train.init_from, str(self.engine.device), train.precision, retries=False)
            decode = replace(self.config.decode, beam_size=train.validation_beam_size)
            progress.old_bleu = mean_bleu(replace(loaded, decode=decode), self.old_sets, self.config)
        return progress.old_bleu or 0.0

    def _record_score(self, result: ValidationResult) -> tuple[float, float, bool]:
        """Record the score; return it (higher is better), chrF2, and whether it is one of the `keep_best` best.

        If more than `train.max_loss_on_old` is lost, the score is not recorded and is minus infinity.
        """
        settings = self.config.train
        if settings.max_loss_on_old is not None and (result.loss_on_old or 0.0) > settings.max_loss_on_old:
            return -math.inf, result.chrf, False
        score: float = getattr(result, settings.best_by)
        if settings.best_by == "bleu" and score < ZERO_BLEU:
            score = 0.0
        rank = self.run.record_score(self.progress.step, score, settings.best_by, result.chrf)
        is_kept = rank is not None and rank < settings.keep_best
        return -score if settings.best_by == "loss" else score, result.chrf, is_kept

    # --- checkpoints

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this step, and remove checkpoints that are no longer needed."""
        self.flush_metrics()  # the checkpoint includes the results of all updates
        self.progress.train_seconds = time.monotonic() - self._started_at
        if self.ranks.is_first:
            with self._stopwatch.timing("save"):
                self._write_checkpoint()
        self.ranks.from_first(None)  # wait: if another rank ended first, torchrun would end rank 0 as well

    def _write_checkpoint(self) -> None:
        progress = asdict(self.progress)
        save_model_folder(
            self.run.checkpoint(self.progress.step),
            self.engine.eval_weights,
            self.config,
            self.corpus.tokenizer_paths,
            {
                **self._manifest,
                **{key: progress[key] for key in ("step", "schedule_start", "n_tgt_tokens", "train_seconds")},
            },
            {**self.engine.state_dict(), "progress": progress},
        )
        if not self.progress.n_skipped_in_row:  # otherwise a rollback may need an older checkpoint
            self.run.prune_checkpoints(self.config.train)

    def _load_last(self, is_wanted: Callable[[Progress], bool]) -> Progress | None:
        """Load the last readable checkpoint that `is_wanted` accepts; return its progress, or None if there is none.

        Rank 0 chooses it, and quarantines damaged checkpoints.
        """
        found = self._newest(is_wanted) if self.ranks.is_first else None
        step = self.ranks.from_first(found and found[2].step)
        if step is None:
            return None
        weights, state, progress = found or _read_checkpoint(self.run.checkpoint(step), self.config.train)
        self.engine.load(weights, state, self.run.checkpoint(step))
        return progress

    def _newest(self, is_wanted: Callable[[Progress], bool]) -> Saved | None:
        damaged: dict[Path, CheckpointError] = {}
        for folder in reversed(self.run.checkpoints()):
            try:
                saved = _read_checkpoint(folder, self.config.train)
            except CheckpointError as error:
                damaged[folder] = error
                continue
            if is_wanted(saved[2]):
                for damaged_folder, damage in damaged.items():
                    moved_to = quarantine_checkpoint(damaged_folder)
                    told = f"{damage.statement}. The checkpoint was moved to {moved_to}"
                    _log.warning(f"{told}; training continues from an earlier one")
                return saved
        if damaged:
            why = f"has no readable checkpoint to continue from. The latest: {next(iter(damaged.values())).statement}"
            raise CheckpointError(self.run.path, why, "restore it, or start over with another --run-dir")
        return None

    def _take_first_weights(self) -> None:
        """Take the weights of the model in `train.init_from`, if there is one, with rows for new pieces.

        See `initial_model`.
        """
        if (folder := initial_model(self.config)) is None:
            return
        weights = folder.load_weights()
        if self.config.train.grow_vocab:
            pairs = zip(folder.tokenizer_paths, self.corpus.tokenizer_paths, strict=True)
            known = folder.config.language_pieces
            like = dict.fromkeys(self.config.language_pieces, known[0]) if known else None
            spelled = [spellings(old.read_bytes(), grown.read_bytes(), like) for old, grown in pairs]
            weights = grown_weights(weights, folder.vocab_size, (spelled[0], spelled[-1]))
        self.engine.load(weights, None, folder.path)

    def _take_bleu_tokenizer(self) -> None:
        """Take the tokenizer of BLEU. An earlier version may have computed the scores so far with another one."""
        settings, progress = self.config.eval, self.progress
        langs = [entry.direction.tgt for entry in self.config.valid_sets.values()]
        chosen = chosen_tokenizers(settings.bleu_tokenize, langs) if self.ranks.is_first else None
        before, progress.bleu_tokenizer = progress.bleu_tokenizer, self.ranks.from_first(chosen)
        if before == progress.bleu_tokenizer or progress.best_step is None or self.config.train.best_by != "bleu":
            return
        progress.best_step, progress.best_score, progress.best_chrf, progress.n_without_better = None, 0.0, 0.0, 0
        if self.ranks.is_first:
            self.run.scores.unlink(missing_ok=True)
            change = f"BLEU is now computed with tok:{progress.bleu_tokenizer}, and was computed with tok:{before}"
            _log.warning(f"{change}. Only validations from now on choose the best checkpoint")

    # --- messages

    def report_already_done(self) -> None:
        """Log that there is nothing left to train."""
        if self.ranks.is_first:
            if warning := self.run.limit_warning(self.config.train.last_step):
                _log.warning(warning)
            else:
                _log.info(f"training is already complete: {self.progress.step:,} steps{self._time_limit_note}")

    def report_result(self) -> None:
        """Log what was trained, and why training ended.

        Raises:
            KeyboardInterrupt, SystemExit(143): a signal ended it.
        """
        self.sync_stop()  # a signal may have come during the last save
        progress, patience = self.progress, self.config.train.patience
        if self.is_signalled:
            saved = f"stopped after step {progress.step:,}; everything is saved in {self.run.path}"
            saved = saved if progress.step else "stopped before the first step"
            self.tracker.say(f"{saved}. Run the same command again to continue")
            raise KeyboardInterrupt if self._stop == signal.SIGINT else SystemExit(128 + self._stop)
        if patience is not None and progress.n_without_better >= patience:
            result = "gave no finite score"
            if progress.best_step is not None:
                result = f"did not improve on the score of step {progress.best_step:,}"
            self.tracker.say(f"stopped early: the last {progress.n_without_better} validations {result}")
        elif self._time_limit_note:
            self.tracker.say(f"stopped after {progress.step:,} steps{self._time_limit_note}")
        steps = f"{progress.step:,} steps" + (f"{self._too_many_note}," if self._too_many_note else "")
        self.tracker.say(
            f"trained {steps} with {progress.n_tgt_tokens:,} target tokens "
            f"in {format_duration(progress.train_seconds)}; {progress.packing_efficiency}"
        )


def _read_checkpoint(folder: Path, train: TrainConfig) -> Saved:
    """Return the weights, training state and progress in a checkpoint.

    If it was trained with another schedule of the learning rate, that of `train` starts there.

    Raises:
        CheckpointError: a file is missing or damaged.
    """
    opened = ModelFolder.open(folder)
    weights, state = opened.load_weights(), opened.load_training_state()
    progress = Progress.of_dict(state["progress"])
    progress.schedule_start = schedule_start(opened, train)
    return weights, state, progress
