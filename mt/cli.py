"""The `mt` command: parse, call one function, print. Results go to standard output, messages to standard error.

Exit status: 0 success, 1 an internal error (with traceback) or a failed training of `mt sweep`, 2 an error that the
user can fix (one line, no traceback), 130 interrupted, 141 the reader of standard output has gone, 143 terminated. Slow
imports go inside the commands.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import shlex
import stat
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, NoReturn

import typer

from mt.errors import ConfigError, MTError
from mt.system.console import open_standard_streams, printable, require_stream, show_messages

if TYPE_CHECKING:
    from mt.config.settings import Corpus, RunConfig
    from mt.decode.files import InputShard
    from mt.decode.translator import Translator
    from mt.report.facts import Evaluation, SystemComparison
    from mt.text.reader import SentencePair

# Exit statuses of a process that a signal ended, as a shell has them.
INTERRUPTED, TERMINATED = 130, 143
LONGEST_ERROR = 4_000  # characters


class _Commands(typer.core.TyperGroup):
    """The commands of `mt`. Translates exceptions to exit statuses."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[:1] == ["eval"] and "--compare" in args:  # another name of mt compare
            args = ["compare", *(arg for arg in args[1:] if arg != "--compare")]
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        show_messages()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # so that a reader that has gone is noticed here, not at exit
            return result
        except MTError as error:
            _print_error(error)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            if not _reader_is_gone():
                raise
            _drop_output()
            raise typer.Exit(141) from None
        except OSError as error:
            from mt.system.files import REMEDIES, WriteError

            if error.errno not in REMEDIES:
                raise
            _drop_output()
            _print_error(WriteError(error.filename or "standard output", error))
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            _print_error(MTError("", str(error).partition(". ")[0], "use smaller batches, or the CPU"))
            raise typer.Exit(2) from None


def _print_error(error: MTError) -> None:
    text = printable(" ".join(str(error).split()))
    if len(text) > LONGEST_ERROR:  # it quotes a file that is not what it should be
        text = f"{text[:LONGEST_ERROR]}…"
    print(f"error: {text}", file=sys.stderr)


def _drop_output() -> None:
    """Discard buffered output, which Python would fail to flush at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Return whether the broken pipe is standard output and not another one."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


_log = logging.getLogger(__name__)

app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_commands, name="config", help="List, show and start configs, and explain settings.")


OF_MODEL = "Default: the model's config."


def _option(metavar: str | None, help_text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help_text)


CONFIG_HELP = "A config file, or the name of a config that ships with mt."
MODEL_HELP = "A run folder, a checkpoint or a model folder."
ConfigOption = Annotated[str, _option("FILE", CONFIG_HELP, "--config")]
SetOption = Annotated[
    list[str] | None, _option("KEY=VALUE", "Override a setting, for example train.max_steps=100; repeatable.", "--set")
]
RunDir = Annotated[Path | None, _option("DIR", "The run folder. Default: runs/NAME.")]
Model = Annotated[str, _option("DIR", MODEL_HELP)]
DeviceOption = Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="Precision of matrix products.")]
BeamSize = Annotated[int | None, _option("N", f"Beam size; 1 is greedy search. {OF_MODEL}")]
LengthPenalty = Annotated[float | None, _option("A", f"Exponent of the length penalty; 0 turns it off. {OF_MODEL}")]
BatchTokens = Annotated[int | None, _option("N", f"Source tokens in a batch. {OF_MODEL}")]
BatchSentences = Annotated[int | None, _option("N", f"Maximum number of sentences in a batch. {OF_MODEL}")]
Json = Annotated[bool, _option(None, "Print the result as one JSON object.", "--json")]
Report = Annotated[
    Path | None, _option("DIR", "Write a report to this folder: report.html, .json and .md.", "--report")
]
Tests = Annotated[list[str] | None, _option("NAME", "Score only this test set; repeatable.", "--test")]
References = Annotated[
    list[Path] | None, _option("FILE", "References, one per line. Repeat for several references.", "--ref")
]
Src = Annotated[Path | None, _option("FILE", "Source text, one segment per line.")]
File = Annotated[
    str | None,
    _option("FILE", "Translate and score this file with both sides: .tsv, .csv, .jsonl, .tmx, .parquet."),
]
Sacrebleu = Annotated[
    str | None, _option("NAME", "Translate and score this test set of sacreBLEU, such as wmt14/full.")
]
Data = Annotated[
    str | None,
    _option("ENTRY", "Translate and score a corpus as in a config: '{file: x.tsv, src_column: 2, tgt_column: 3}'."),
]
SrcLang = Annotated[str | None, _option("LANG", "Language of the source, for a model with several.", "--from")]
ToLang = Annotated[str | None, _option("LANG", "Language to translate into, for a model with several.", "--to")]
TgtLang = Annotated[
    str | None,
    _option(
        "LANG", "Language of the translations; for a file of them, it chooses BLEU's tokenizer.", "--to", "--tgt-lang"
    ),
]
Tokenize = Annotated[
    str | None, _option("NAME", "Tokenizer of BLEU, as in sacreBLEU. Default: of the run, or by language or script.")
]
METRICS = "bleu, chrf, chrf++, bleu-lc, ter, bleu-2017 or all; repeatable. Default: the first"
Metrics = Annotated[list[str] | None, _option("NAME", f"{METRICS} four.", "--metric")]
ComparedMetrics = Annotated[list[str] | None, _option("NAME", f"{METRICS} two.", "--metric")]
Confidence = Annotated[bool, _option(None, "Add 95% bootstrap confidence intervals.", "--confidence")]
Significance = Annotated[Literal["randomisation", "bootstrap"], typer.Option(help="Significance test for differences.")]
Samples = Annotated[
    int | None, _option("N", "Samples drawn. Default: 1,000 for bootstrap, 10,000 for randomisation.", "--samples")
]
SrcColumn = Annotated[
    str | None, _option("NAME|N", "The column of a table with the source. Default: the one named after the language.")
]
Overwrite = Annotated[bool, _option(None, "Replace outputs that exist.", "--overwrite")]


def _print(text: object, end: str = "\n", flush: bool = False) -> None:
    """Print results for people, or as JSON, without control characters from the files they are about."""
    print(printable(str(text)), end=end, flush=flush)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from mt import __version__

        _print(f"mt {__version__}")
        raise typer.Exit()


@app.callback()
def _mt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train machine translation models: from raw parallel text to a BLEU report."""


@app.command()
def train(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: RunDir = None,
    is_dry_run: Annotated[
        bool,
        _option(
            None, "Print what training would do, and the time and memory that it needs; write nothing.", "--dry-run"
        ),
    ] = False,
) -> None:
    """Train a model, from raw text to a report.

    Prepares the data, trains, averages checkpoints and evaluates. Run it again to continue a training that was stopped.
    """
    run_config = _config(config, overrides, run_dir)
    run_dir = run_dir or Path("runs") / run_config.name
    if is_dry_run:
        # Before the imports below, which take seconds.
        _log.info(f"{run_config.name}: dry run: building the model and timing a few updates")
        from mt.tools.dry_run import dry_run

        _print(dry_run(run_config, run_dir))
        return
    from mt.api import train
    from mt.system.distributed import Ranks

    trained = train(run_config, run_dir=run_dir)
    if Ranks.from_environment().is_first:
        _print(trained)


@app.command()
def sweep(
    config: ConfigOption,
    grid: Annotated[
        list[str] | None,
        _option("KEY=V1,V2", "Values of a setting; the first is the baseline. Repeatable: all combinations.", "--grid"),
    ] = None,
    n_seeds: Annotated[int, typer.Option("--seeds", metavar="N", min=1, help="Trainings of each variant.")] = 1,
    budget: Annotated[
        str | None, _option("TIME", "Time of each training, such as 10m: --set train.budget=TIME.")
    ] = None,
    overrides: SetOption = None,
    sweep_dir: Annotated[Path | None, _option("DIR", "The folder of the runs. Default: runs/sweep.")] = None,
    is_dry_run: Annotated[bool, _option(None, "List the trainings; start none.", "--dry-run")] = False,
) -> None:
    """Train variants of a config and compare them in one table.

    Trains one variant after the other, or one on each GPU. Run it again to continue a sweep that was stopped. The
    folder gets sweep.md, sweep.html with curves, and sweep.json. The exit status is 1 if a training failed.
    More: mt docs sweep
    """
    from mt.tools.sweep import Sweep

    settings = [*(overrides or []), *([] if budget is None else [f"train.budget={budget}"])]
    found = Sweep(config, grid or [], settings, n_seeds, sweep_dir or Path("runs/sweep"))
    if is_dry_run:
        _print(found.plan())
        return
    found.train()
    _print(found.table)
    if found.table.failed:
        raise typer.Exit(1)


@app.command("prepare")
def prepare_data(config: ConfigOption, overrides: SetOption = None) -> None:
    """Prepare the data only.

    Downloads or reads the text, cleans it, trains the tokenizer and encodes the text. More: mt docs data
    """
    from mt.api import prepare

    _print(prepare(config, overrides or []))


@app.command("doctor")
def examine_data(
    config: ConfigOption, overrides: SetOption = None, run_dir: RunDir = None, as_json: Json = False
) -> None:
    """Check a config and its data for problems.

    Reads a sample of the data, takes seconds, writes nothing. The exit status is 2 if preparing or training would fail.
    More: mt docs doctor
    """
    run_config = _config(config, overrides, run_dir)
    _log.info(f"{run_config.name}: checking a sample of each corpus")
    from mt.tools.doctor import diagnosis_json, diagnosis_text, examine

    diagnosis = examine(run_config, run_dir or Path("runs") / run_config.name)
    if as_json:
        _print(json.dumps(diagnosis_json(diagnosis), ensure_ascii=False))
    else:
        _print(diagnosis_text(diagnosis, config))
    if diagnosis.has_errors:
        raise typer.Exit(2)


@app.command()
def translate(
    context: typer.Context,
    model: Model,
    input_file: Annotated[
        str,
        _option(
            "FILE|-",
            "Source text, one segment per line, or per row of a .tsv, .csv, .jsonl, .tmx or .parquet file; - is "
            "standard input.",
            "--input",
        ),
    ] = "-",
    src_column: SrcColumn = None,
    src_lang: SrcLang = None,
    tgt_lang: ToLang = None,
    output_file: Annotated[
        str, _option("FILE|-", "Translations, in FILE.part until complete; - is standard output.", "--output")
    ] = "-",
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    length_penalty_form: Annotated[
        Literal["wu", "plain"] | None, _option(None, f"wu: ((5 + n) / 6)^A; plain: n^A, for n tokens. {OF_MODEL}")
    ] = None,
    min_length: Annotated[
        int | None, _option("N", f"Minimum number of tokens, end of sentence not included. {OF_MODEL}")
    ] = None,
    max_length: Annotated[
        int | None,
        _option(
            "N",
            "Maximum number of tokens, end of sentence included. Default: the model's config, or source + 50.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, _option("N", f"Never repeat a sequence of N tokens; 0 turns it off. {OF_MODEL}")
    ] = None,
    n_best: Annotated[int, _option("N", "Translations written for each line, best first.")] = 1,
    sample: Annotated[
        bool, _option(None, "Sample translations instead of searching for the best.", "--sample")
    ] = False,
    temperature: Annotated[float | None, _option("T", "With --sample: below 1 is less random, above 1 more.")] = None,
    top_k: Annotated[int | None, _option("K", "With --sample: only the K most probable tokens.")] = None,
    top_p: Annotated[
        float | None, _option("P", "With --sample: only the most probable tokens, up to a total probability of P.")
    ] = None,
    seed: Annotated[int | None, _option("N", "With --sample: seed of the random numbers.")] = None,
    prefix: Annotated[
        Path | None, _option("FILE", "The start of each translation, one per line; a line may be empty.")
    ] = None,
    output_format: Annotated[
        Literal["text", "jsonl"], _option(None, "jsonl: an object per line, with scores, tokens and flags.", "--format")
    ] = "text",
    align: Annotated[bool, _option(None, "With --format jsonl: add word alignments.", "--align")] = False,
    alignments: Annotated[
        Path | None,
        _option("FILE", "Write word alignments such as 0-0 1-2 to this file, one line for each line of text."),
    ] = None,
    shard: Annotated[
        str | None, _option("I/N", "Translate only the I-th of N shards of the file; join the outputs with cat.")
    ] = None,
    is_resumed: Annotated[
        bool, _option(None, "Continue an interrupted translation from OUTPUT.part.", "--resume")
    ] = False,
    may_overwrite: Overwrite = False,
    is_strict: Annotated[
        bool, _option(None, "Fail on text that is not UTF-8, instead of replacing bad bytes by U+FFFD.", "--strict")
    ] = False,
    retries: Annotated[
        bool, _option(None, "Search again when a translation loops, or is far too long or short.", "--retry/--no-retry")
    ] = True,
    split_sentences: Annotated[
        Literal["auto", "always", "never"],
        _option(
            None,
            "Translate the sentences of a line one by one. auto: if it has more sentences or tokens than most lines of "
            "the model's training.",
        ),
    ] = "auto",
    has_progress: Annotated[bool, _option(None, "Show progress on standard error.", "--progress/--no-progress")] = True,
    backend: Annotated[
        Literal["own", "ctranslate2"],
        _option(None, "own is mt itself; ctranslate2 runs an export (mt export --to ctranslate2)."),
    ] = "own",
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    batch_tokens: BatchTokens = None,
    batch_sentences: BatchSentences = None,
) -> None:
    """Translate text: each line of input gives one line of output.

    Empty lines stay empty. Output starts before the input ends. More: mt docs translate
    """
    if sample:
        _refuse(context, ["--beam-size"], "cannot be combined with --sample", "remove one of them")
    else:
        _refuse(context, ["--temperature", "--top-k", "--top-p", "--seed"], "is for sampling", "add --sample")
    search = _search_changes(context)
    if n_best < 1:
        raise ConfigError("--n-best", f"expected at least 1, got {n_best}")
    if n_best > search.get("beam_size", n_best):
        raise ConfigError(
            "--n-best", f"is {n_best}, more than --beam-size ({beam_size})", "raise --beam-size or lower --n-best"
        )
    for option, path in (("--prefix", prefix), ("--alignments", alignments)):
        if path == Path("-"):
            raise ConfigError(option, "needs a file, not -")
    if align and output_format != "jsonl":
        raise ConfigError(
            "--align", "needs --format jsonl", "add it, or use --alignments FILE to write a separate file"
        )
    inputs = {"--input": input_file, "--prefix": prefix}
    _require_different_files(inputs, {"--output": output_file, "--alignments": alignments})
    if backend == "ctranslate2":
        problem = "is not supported by CTranslate2"
        _refuse(context, ["--align", "--alignments"], problem, "use --backend own with the model itself")
    if output_file == "-":
        require_stream("output")
    if is_resumed and output_file == "-":
        raise ConfigError("--resume", "needs an output file to continue", "give --output FILE")
    from mt.decode.files import TranslateOptions, translate_files

    options = TranslateOptions(
        source=input_file,
        src_column=src_column,
        output=output_file,
        prefixes=prefix,
        alignments=alignments,
        is_jsonl=output_format == "jsonl",
        is_aligned=align,
        n_best=n_best,
        shard=None if shard is None else _shard(shard),
        is_strict=is_strict,
        is_resumed=is_resumed,
        may_overwrite=may_overwrite,
        has_progress=has_progress,
    )

    def load() -> Translator:
        how: dict[str, Any] = {"retries": retries, "split_sentences": split_sentences}
        how |= {"src_lang": src_lang, "tgt_lang": tgt_lang}
        if backend == "ctranslate2":
            from mt.export.ctranslate2 import load_translator

            translator = load_translator(model, device, precision, **how)
        else:
            from mt.decode.translator import Translator

            translator = Translator.load(model, device, precision, n_processes=None, **how)
        translator.require_direction()
        return translator

    with _named_as_options():
        translate_files(options, load, search)


@app.command()
def score(
    context: typer.Context,
    model: Model,
    src: Src = None,
    tgt: Annotated[Path | None, _option("FILE", "Translations, one per line of the source.")] = None,
    file: Annotated[
        Path | None,
        _option("FILE", "Both in one file, instead of --src and --tgt: .tsv, .csv, .jsonl, .tmx, .parquet."),
    ] = None,
    src_column: SrcColumn = None,
    tgt_column: Annotated[str | None, _option("NAME|N", "With --src-column: the column with the translations.")] = None,
    from_lang: SrcLang = None,
    to_lang: ToLang = None,
    output_file: Annotated[str, _option("FILE|-", "Scores; - is standard output.", "--output")] = "-",
    may_overwrite: Overwrite = False,
    length_penalty: LengthPenalty = None,
    output_format: Annotated[
        Literal["text", "jsonl"], _option(None, "jsonl: an object per line, with a score for each token.", "--format")
    ] = "text",
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    batch_tokens: Annotated[int | None, _option("N", f"Tokens of each side in a batch. {OF_MODEL}")] = None,
) -> None:
    """Score given translations: each pair of lines gives one line of output.

    Prints, separated by tabs: log-probability (natural logarithm), log-probability per token, the score by which beam
    search ranks, and the number of tokens, end of sentence included. More: mt docs score
    """
    changes = _search_changes(context)
    from mt.config.settings import Table, TextFiles
    from mt.decode.lines import columns_named
    from mt.text.corpora import is_table, reader_of

    if (file is None) == (src is None) or (src is None) != (tgt is None):
        raise ConfigError("", "the pairs come from two files or from one", "give --src and --tgt, or --file")
    for option, path in (("--src", src), ("--tgt", tgt)):
        if path is not None and is_table(path):
            raise ConfigError(option, f"{path} is a table", f"give --file {path}, or a file of plain text")
    _require_different_files({"--src": src, "--tgt": tgt, "--file": file}, {"--output": output_file})
    pairs: Iterator[SentencePair] = iter(())
    if file is None:
        _refuse(context, ["--src-column", "--tgt-column"], "is for a table", "give --file")
        pairs = reader_of(TextFiles(src=str(src), tgt=str(tgt)), ("", ""), "").pairs()
    first = list(islice(pairs, 1))  # so that an unreadable file is reported before the model is loaded
    columns = columns_named("--src-column and --tgt-column")
    with _named_as_options(), columns, _output_stream(output_file, may_overwrite) as target:
        from mt.decode.scorer import Scorer

        scorer = Scorer.load(model, device, precision, src_lang=from_lang, tgt_lang=to_lang)
        if file is not None:
            src_lang, tgt_lang = (side.lang for side in scorer.translator.normalisers)
            given = [int(column) if column and column.isdecimal() else column for column in (src_column, tgt_column)]
            table = Table(file=str(file), src_column=given[0], tgt_column=given[1])
            pairs = reader_of(table, (src_lang, tgt_lang), "").pairs()
        for result in scorer.score(chain(first, pairs), replace(scorer.decode, **changes)):
            target.write(f"{result.json_line() if output_format == 'jsonl' else result.text_line()}\n".encode())
    for warning in scorer.warnings():
        _log.warning(warning)


@app.command()
def explain(
    model: Model,
    src: Annotated[str, _option("TEXT", "A source sentence.")],
    output: Annotated[Path, _option("FILE", "The HTML page to write.")],
    may_overwrite: Overwrite = False,
    tgt: Annotated[str | None, _option("TEXT", "A translation. Default: the model's translation.")] = None,
    src_lang: SrcLang = None,
    tgt_lang: ToLang = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
) -> None:
    """Show the attention of a model on a sentence.

    Writes a page with a map for each layer of the decoder: which source tokens it attends to for each target token.
    """
    with _named_as_options(), _output_stream(str(output), may_overwrite) as page:
        from mt.explain.attention import explained_page

        page.write(explained_page(model, src, tgt, device, precision, src_lang, tgt_lang).encode())


@app.command("eval")
def evaluate(
    context: typer.Context,
    model: Annotated[Path | None, _option("DIR", f"{MODEL_HELP} Its test sets are scored, or other text.")] = None,
    tests: Tests = None,
    hyp: Annotated[Path | None, _option("FILE", "Translations, one per line.")] = None,
    src: Src = None,
    refs: References = None,
    file: File = None,
    sacrebleu: Sacrebleu = None,
    data: Data = None,
    src_lang: SrcLang = None,
    tgt_lang: TgtLang = None,
    tokenize: Tokenize = None,
    metrics: Metrics = None,
    has_confidence: Confidence = False,
    baseline: Annotated[
        Path | None, _option("FILE|DIR", "Test whether the difference from these translations or this model is chance.")
    ] = None,
    significance: Significance = "randomisation",
    n_samples: Samples = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    report_dir: Report = None,
    may_overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Score a model, or a file of translations.

    Give --model for the model's test sets, with --src and --ref, --file, --sacrebleu or --data for other text; or give
    --hyp and --ref. Scores are sacreBLEU's, with their signatures. To compare several systems, use `mt compare`.
    More: mt docs eval
    """
    if model is not None:
        problem = "is for files of translations and cannot be combined with --model"
        _refuse(context, ["--hyp"], problem, "remove one of them")
        corpus = _given_corpus(context)
    else:
        for_models = ["--test", "--file", "--sacrebleu", "--data", "--from", "--device", "--precision"]
        _refuse(context, for_models, "needs --model", "give --model DIR")
        corpus = None
        if hyp is None and not refs:
            raise ConfigError("--model", "is missing", "give --model DIR, or --hyp FILE and --ref FILE")
        if hyp is None or not refs:
            missing, given = ("--hyp", "--ref") if hyp is None else ("--ref", "--hyp")
            raise ConfigError(given, f"needs {missing}", f"add {missing} FILE")
    if baseline is None:
        _refuse(context, ["--significance"], "needs --baseline", "add --baseline, or use mt compare")
        if not has_confidence:
            _refuse(context, ["--samples"], "needs --confidence or --baseline", "add one of them")
    with _named_as_options():
        _check_report_folder(report_dir, may_overwrite)
        from mt.api import evaluate
        from mt.report.terminal import evaluation_text

        report = evaluate(
            model,
            hypotheses=hyp,
            references=refs or None,
            sources=src,
            data=corpus,
            baseline=baseline,
            tests=tests or [],
            metrics=metrics,
            confidence=has_confidence,
            significance=significance,
            n_samples=n_samples,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            tokenize=tokenize,
            device=device,
            precision=precision,
            n_processes=None,
            analysis=report_dir is not None,
        )
    for line in [] if as_json else report.warning_lines:
        _log.warning(line)
    shown = report.written(include={"test_sets", "comparison", "warnings"})
    _print(json.dumps(shown, ensure_ascii=False) if as_json else evaluation_text(report), flush=True)
    _write_report(report, report_dir)  # after the scores, so that a full disk cannot lose them


@app.command()
def compare(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Runs or models; with --ref, files of translations.")
    ] = None,
    tests: Tests = None,
    src: Src = None,
    refs: References = None,
    file: File = None,
    sacrebleu: Sacrebleu = None,
    data: Data = None,
    src_lang: SrcLang = None,
    tgt_lang: TgtLang = None,
    tokenize: Tokenize = None,
    metrics: ComparedMetrics = None,
    has_confidence: Confidence = False,
    significance: Significance = "randomisation",
    n_samples: Samples = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    report_dir: Report = None,
    may_overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare several systems in one table.

    Tells which of them differ significantly. Runs and models are compared on the test sets that they share, or on other
    text, with --src and --ref, --file, --sacrebleu or --data; files of translations with --ref. `mt eval --compare` is
    another name for it. More: mt docs eval
    """
    runs = runs or []
    corpus = _given_corpus(context, is_ref_enough=True)
    if refs and not src:
        for_models = ["--test", "--from", "--device", "--precision"]
        _refuse(context, for_models, "cannot be combined with --ref, which compares files", "remove one of them")
    if len(runs) < 2:
        usage = "use mt compare A B, or mt compare --ref REF A B"
        raise ConfigError("RUN", f"expected at least two, got {len(runs) or 'none'}", usage)
    if not (refs or corpus) and (translations := next((run for run in runs if run.is_file()), None)):
        raise ConfigError(translations, "is a file", "add --ref FILE to compare files of translations")
    with _named_as_options():
        _check_report_folder(report_dir, may_overwrite)
        from mt.api import compare
        from mt.report.terminal import comparison_text

        given = _given_options(context)  # without either, saved translations of a finished run are compared
        found = compare(
            runs,
            references=refs or None,
            sources=src,
            data=corpus,
            tests=tests or [],
            metrics=metrics,
            confidence=has_confidence,
            significance=significance,
            n_samples=n_samples,
            src_lang=src_lang,
            tgt_lang=tgt_lang,
            tokenize=tokenize,
            device=given.get("--device"),
            precision=given.get("--precision"),
            n_processes=None,
        )
    facts = found.written(exclude={"training"})
    _print(json.dumps(facts, ensure_ascii=False) if as_json else comparison_text(found), flush=True)
    _write_report(found, report_dir)


@app.command()
def average(
    run_dir: Annotated[Path, _option("DIR", "The run folder.")],
    last: Annotated[int, _option("N", "Number of checkpoints.")],
) -> None:
    """Average the last checkpoints of a run.

    Writes a model folder and prints its path.
    """
    if last < 1:
        raise ConfigError("--last", f"expected at least 1, got {last}")
    from mt.pipeline import average_run

    _print(average_run(run_dir, last))


@app.command("export")
def export_model(
    model: Annotated[Path, _option("DIR", MODEL_HELP)],
    to: Annotated[Literal["ctranslate2"], _option(None, "The program that will run the export.")],
    output: Annotated[Path, _option("DIR", "The folder to write; it must not exist.")],
    quantization: Annotated[
        Literal["float32", "int8", "float16"], _option(None, "Format of the weights; int8 is the fastest on a CPU.")
    ] = "float32",
    verify_with: Annotated[
        Path | None,
        _option("FILE", "Source text for the check. Default: the model's test set, if available."),
    ] = None,
) -> None:
    """Export a model to CTranslate2.

    Translates some lines with mt and with the export, and writes nothing if too many translations differ.
    More: mt docs export
    """
    from mt.export.ctranslate2 import export, format_export

    with _named_as_options():
        _print(format_export(export(model, output, quantization, verify_with)))


@app.command("verify-resume")
def verify_resume(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None,
        _option("DIR", "Keep the two runs, one-go and killed, in this folder. Default: a temporary folder."),
    ] = None,
    updates: Annotated[int, _option("N", "Updates of each run.")] = 30,
    kills: Annotated[int, _option("N", "Number of times that the second run is killed.")] = 3,
    as_json: Json = False,
) -> None:
    """Verify that a killed training resumes exactly.

    Trains once without and once with kills, and compares all weights, the training state and the logged losses bit for
    bit.
    """
    run_config = _config(config, overrides)
    from mt.tools.verify import verify_resume

    verdict = verify_resume(run_config, run_dir, n_updates=updates, n_kills=kills)
    _print(json.dumps(verdict.as_json()) if as_json else verdict)
    if not verdict.is_proved:
        raise MTError(verdict.summary)


@app.command()
def bench(
    context: typer.Context,
    config: Annotated[str | None, _option("FILE", f"{CONFIG_HELP} Measures training.")] = None,
    overrides: SetOption = None,
    model: Annotated[Path | None, _option("DIR", f"{MODEL_HELP} Measures decoding.")] = None,
    steps: Annotated[
        int | None,
        _option(
            "N", "With --config: updates, by default as many as fit into 20 s. With --model: passes over the text."
        ),
    ] = None,
    random_data: Annotated[
        bool, _option(None, "Train on random sentences with the lengths of WMT14 instead of text.", "--random-data")
    ] = False,
    input_file: Annotated[
        Path | None, _option("FILE", "Text to translate. Default: the model's test set.", "--input")
    ] = None,
    beam_size: BeamSize = None,
    batch_tokens: BatchTokens = None,
    batch_sentences: BatchSentences = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Measure the speed of training or decoding.

    Give --config for training, --model for decoding. Prints tokens per second and memory. For training, also the time
    of each part of a step and the fraction of the device's peak; for decoding, also the latency of a single line.
    More: mt docs performance
    """
    if steps is not None and steps < 1:
        raise ConfigError("--steps", f"expected at least 1, got {steps}")
    if (config is None) == (model is None):
        raise ConfigError("", "--config measures training and --model measures decoding", "give exactly one of them")
    if model is None:
        of_search = ["--beam-size", "--batch-tokens", "--batch-sentences"]
        for_model = ["--input", *of_search, "--device", "--precision"]
        _refuse(context, for_model, "is for decoding", "use it with --model")
        assert config is not None
        run_config = _config(config, overrides)
        from mt.tools.bench import bench_training, format_bench

        figures = bench_training(run_config, steps, random_data)
    else:
        _refuse(context, ["--set", "--random-data"], "is for training", "use it with --config")
        changes = _search_changes(context)
        from mt.tools.bench import bench_decoding, format_bench

        on = {"device": device, "precision": precision}
        with _named_as_options():
            figures = bench_decoding(model, input_file, n_rounds=steps, changes=changes, **on)
    _print(json.dumps(figures, ensure_ascii=False) if as_json else format_bench(figures))


@app.command("demo")
def demo(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Default: the current folder.", show_default=False)
    ] = Path(),
) -> None:
    """Write a config and a small corpus to start with.

    Never overwrites a file that has other content.
    """
    from mt.shipped import write_demo

    config = write_demo(folder)[0]
    go = "" if folder == Path() else f"  cd {shlex.quote(str(folder))}\n"
    _print(f"""{config} and 20,000 pairs of English and German are ready. Next:

{go}  mt train --config demo.yaml     # a model of 1.2 M parameters; minutes on 2 cores
  echo "Two old women read a book." | mt translate --model runs/demo
  mt eval --model runs/demo       # BLEU and chrF on the test set

The documentation: mt docs""")


@app.command("docs")
def print_docs(
    page: Annotated[str | None, typer.Argument(metavar="PAGE", help="Default: list the pages.")] = None,
) -> None:
    """List the pages of the documentation, or print one of them."""
    from mt.shipped import page_list, print_page

    if page is None:
        _print(page_list())
    else:
        print_page(page)


@config_commands.command("list")
def config_list() -> None:
    """List the configs that ship with mt, and their purpose."""
    from mt.config.loading import shipped_configs

    width = max(len(path.name) for path in shipped_configs()) + 2
    for path in shipped_configs():
        purpose = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        _print(f"{path.name:<{width}}{purpose}")


@config_commands.command("show")
def config_show(
    config: Annotated[str, typer.Argument(metavar="FILE", help=CONFIG_HELP)],
    overrides: SetOption = None,
) -> None:
    """Print all settings of a config as YAML, including defaults."""
    from mt.config.loading import dump_config

    _print(dump_config(_config(config, overrides)), end="")


@config_commands.command("explain")
def config_explain(
    keys: Annotated[
        list[str] | None, typer.Argument(metavar="KEY...", help="Settings or sections, such as train.peak_lr or train.")
    ] = None,
    config: Annotated[str | None, _option("FILE", f"{CONFIG_HELP} Shows its values too.")] = None,
) -> None:
    """Explain settings: meaning, values and default.

    Also says whether a started run may change them. Without a KEY, lists the sections.
    """
    from mt.config.reference import explained

    run_config = None if config is None else _config(config, None)
    _print("\n\n".join(explained(key, run_config) for key in keys or [""]))


@config_commands.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")] = Path("my.yaml"),
) -> None:
    """Write a config with comments to start from, for your own text."""
    from mt.config.reference import write_starter

    write_starter(path)
    _print(f"wrote {path}: edit its languages and files, then run")
    _print(f"  mt doctor --config {shlex.quote(str(path))}\n  mt train --config {shlex.quote(str(path))}")


@config_commands.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, for completion and checks in an editor."""
    from mt.config.reference import config_schema as schema

    _print(json.dumps(schema(), ensure_ascii=False, indent=1))


def main() -> None:
    """Run the `mt` command."""
    open_standard_streams()
    if sys.argv[1:2] not in (["translate"], ["score"], ["explain"]):  # these may write a file instead
        try:
            require_stream("output")
        except MTError as error:
            _print_error(error)
            sys.exit(2)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        app(prog_name="mt")
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            _leave(ended.code)
        raise


def _leave(status: int) -> NoReturn:
    """Exit at once: Python would wait for threads that are in the middle of a batch."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # the reader may have gone
            stream.flush()
    os._exit(status)


# --- Options to arguments, results to text ----------------------------------------------------------------------------


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Rename settings and arguments in errors to the options that set them."""
    try:
        yield
    except ConfigError as error:
        from mt.decode.files import option_of

        raise error.renamed(option_of) from None


def _config(path_or_name: str, overrides: list[str] | None, run_dir: Path | None = None) -> RunConfig:
    from mt.config.loading import load_config

    return load_config(path_or_name, overrides or [], run_dir)


def _given_options(context: typer.Context) -> dict[str, Any]:
    """Return the options that the user gave, as option → value."""
    names = {parameter.opts[0]: parameter.name or "" for parameter in context.command.params}
    sources = {option: context.get_parameter_source(name) for option, name in names.items()}
    given = [option for option, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return {option: context.params[names[option]] for option in given}


def _refuse(context: typer.Context, options: Sequence[str], problem: str, fix: str) -> None:
    """Raise a ConfigError if the user gave one of these options."""
    given = _given_options(context)
    for option in options:
        if option in given:
            raise ConfigError(option, problem, fix)


def _given_corpus(context: typer.Context, is_ref_enough: bool = False) -> Corpus | None:
    """Return the corpus of --file, --sacrebleu or --data; None without one.

    Args:
        is_ref_enough: references may be given without a source.
    Raises:
        ConfigError: options contradict each other, or --data is wrong.
    """
    from mt.config.loading import load_corpus
    from mt.config.settings import SacrebleuSet, Table

    given = _given_options(context)
    found = [option for option in ("--src", "--ref", "--file", "--sacrebleu", "--data") if option in given]
    pair = [option for option in found if option in ("--src", "--ref")]
    if found[len(pair) :] and len(found) > 1:
        raise ConfigError(found[-1], f"cannot be combined with {found[0]}", "give one text")
    if len(pair) == 1 and not (is_ref_enough and pair == ["--ref"]):
        missing = "--ref" if pair == ["--src"] else "--src"
        raise ConfigError(pair[0], f"needs {missing}", f"add {missing} FILE")
    if found and found != ["--ref"]:
        _refuse(context, ["--test"], f"cannot be combined with {found[0]}", "remove one of them")
    if not found or pair:
        return None
    if found == ["--data"]:
        return load_corpus(given["--data"], "--data")
    with _named_as_options():
        return Table(file=given["--file"]) if found == ["--file"] else SacrebleuSet(sacrebleu=given["--sacrebleu"])


def _search_changes(context: typer.Context) -> dict[str, Any]:
    """Return the settings of `decode` that the options of this command set, by name.

    Raises:
        ConfigError: `decode` does not allow a value; names the option.
    """
    from mt.config.settings import DecodeConfig
    from mt.decode.files import option_of, search_settings

    given = _given_options(context)
    names = {field.name: option_of(field.name) for field in fields(DecodeConfig)}
    changes = {name: given[option] for name, option in names.items() if option in given}
    search_settings(DecodeConfig(), changes)
    return changes


def _shard(text: str) -> InputShard:
    from mt.decode.files import InputShard

    number, slash, n_shards = text.partition("/")
    if not (slash and number.isdecimal() and n_shards.isdecimal() and 1 <= int(number) <= int(n_shards)):
        raise ConfigError("--shard", f"expected I/N, such as 3/8, with I from 1 to N, got {text}")
    return InputShard(int(number), int(n_shards))


@contextlib.contextmanager
def _output_stream(name: str, may_overwrite: bool) -> Iterator[BinaryIO]:
    from mt.system.files import explained_writes, refuse_to_overwrite, whole_file

    if name == "-":
        require_stream("output")
        yield sys.stdout.buffer
        return
    if not may_overwrite:
        refuse_to_overwrite(Path(name))
    with explained_writes(Path(name)), whole_file(Path(name)) as stream:
        yield stream


def _require_different_files(inputs: Mapping[str, str | Path | None], outputs: Mapping[str, str | Path | None]) -> None:
    """Raise a ConfigError if an output is also an input or another output, even by another name or a standard stream.

    Args:
        inputs, outputs: file names by option.
    """
    written: dict[object, str] = {}
    for option, name in (*outputs.items(), *inputs.items()):
        identity = None if name is None else _identity(str(name), descriptor=1 if option in outputs else 0)
        if identity in written:
            shown = "standard input" if name == "-" else name
            raise ConfigError(option, f"{shown} is also the {written[identity]}", "give two different files")
        if identity is not None and option in outputs:
            written[identity] = option


def _identity(name: str, descriptor: int) -> object:
    """Return a value that all names of a regular file share; None for a pipe or a device.

    Args:
        descriptor: of the standard stream that the name - means.
    """
    try:
        found = os.stat(descriptor if name == "-" else name)
    except OSError:  # it does not exist yet
        return None if name == "-" else os.path.realpath(name)
    return (found.st_dev, found.st_ino) if stat.S_ISREG(found.st_mode) else None


def _check_report_folder(folder: Path | None, may_overwrite: bool) -> None:
    if folder is not None:
        from mt.evaluation.report_files import check_folder

        check_folder(folder, may_overwrite=may_overwrite)


def _write_report(facts: Evaluation | SystemComparison, folder: Path | None) -> None:
    if folder is not None:
        from mt.evaluation.report_files import write_report

        write_report(facts, folder)
        _log.info(f"report: {folder / 'report.html'}")
