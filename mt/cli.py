"""The `mt` command: parse, call one function, print. Text goes to standard output, everything else to standard error.

Exit status: 0 done, 2 the user's error (one line, no traceback), 130 interrupted, 141 the reader of our output went
away, 143 terminated, 1 our error (with traceback). Imports that cost time go inside the commands.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, NoReturn

import typer

from mt.errors import ConfigError, MTError

if TYPE_CHECKING:
    from mt.config.settings import RunConfig
    from mt.decode.files import InputShard
    from mt.decode.translator import Translator
    from mt.report.facts import Evaluation, SystemComparison
    from mt.text.corpus import PreparedCorpus

# Exit statuses of a process that a signal ended, as a shell has them.
INTERRUPTED, TERMINATED = 130, 143


class _Commands(typer.core.TyperGroup):
    """The commands, with the one place where exceptions become exit statuses."""

    def invoke(self, ctx: Any) -> Any:
        from mt.system.console import show_messages

        show_messages()
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # here, so that a reader that has gone is noticed here
            return result
        except MTError as error:
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
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
            print(f"error: {WriteError(error.filename or 'standard output', error)}", file=sys.stderr)
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            problem = str(error).partition(". ")[0]
            print(f"error: {problem}: make batches smaller, or use the CPU", file=sys.stderr)
            raise typer.Exit(2) from None


def _drop_output() -> None:
    """Discard what is still buffered, or Python complains at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Return whether it is standard output that broke, and not another pipe."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


_log = logging.getLogger(__name__)

app = typer.Typer(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
config_commands = typer.Typer(no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_commands, name="config", help="List, show and start configs, and explain settings.")


OF_MODEL = "Default: the model's config."


def _option(metavar: str | None, help_text: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help_text)


CONFIG_HELP = "A config file, or the name of one that ships with mt."
MODEL_HELP = "A run folder, a checkpoint or a model folder."
ConfigOption = Annotated[str, _option("FILE", CONFIG_HELP, "--config")]
SetOption = Annotated[
    list[str] | None, _option("KEY=VALUE", "Override a setting, such as train.max_steps=100; repeatable.", "--set")
]
RunDir = Annotated[Path | None, _option("DIR", "The run folder; runs/NAME by default.")]
Model = Annotated[str, _option("DIR", MODEL_HELP)]
DeviceOption = Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[Literal["auto", "bf16", "fp16", "fp32"], typer.Option(help="Of matrix products.")]
BeamSize = Annotated[int | None, _option("N", f"Hypotheses kept open; 1 is greedy. {OF_MODEL}")]
LengthPenalty = Annotated[float | None, _option("A", f"Exponent of the length penalty; 0: none. {OF_MODEL}")]
BatchTokens = Annotated[int | None, _option("N", f"Source tokens translated together. {OF_MODEL}")]
BatchSentences = Annotated[int | None, _option("N", "Sentences translated together at most. Default: no such limit.")]
Json = Annotated[bool, _option(None, "Print one JSON object on standard output, and nothing else.", "--json")]
Report = Annotated[
    Path | None, _option("DIR", "Write report.html, .json and .md there: where it is good and bad.", "--report")
]
Tests = Annotated[list[str] | None, _option("NAME", "Only this test set of the models; repeatable.", "--test")]
References = Annotated[
    list[Path] | None, _option("FILE", "References, one a line; repeatable, for several of each line.", "--ref")
]
TgtLang = Annotated[str, _option("LANG", "Whose rules bleu-2017 tokenises files by.")]
Metrics = Annotated[
    list[str] | None,
    _option(
        "NAME", "bleu, chrf, chrf++, bleu-lc, ter, bleu-2017 or all; repeatable. Default: the first 4.", "--metric"
    ),
]
Confidence = Annotated[bool, _option(None, "Intervals that hold 95% of bootstrap samples.", "--confidence")]
Significance = Annotated[Literal["randomisation", "bootstrap"], typer.Option(help="How differences are tested.")]
Samples = Annotated[
    int | None, _option("N", "Default: 1,000 of the bootstrap, 10,000 of the randomisation.", "--samples")
]


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from mt import __version__

        print(f"mt {__version__}")
        raise typer.Exit()


@app.callback()
def _mt(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
) -> None:
    """Train machine translation models: from raw parallel text to a BLEU report."""


@app.command()
def train(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: RunDir = None,
    is_dry_run: Annotated[
        bool, _option(None, "Print what would happen, how long and in how much memory; write nothing.", "--dry-run")
    ] = False,
) -> None:
    """Train a model, from raw text to a report.

    Runs the stages that are missing: prepare, train, average, evaluate. Continues where it stopped.
    """
    run_config = _config(config, overrides)
    run_dir = run_dir or Path("runs") / run_config.name
    if is_dry_run:
        # Said before anything is imported that takes seconds.
        _log.info(f"{run_config.name}: a dry run, the model is built and some of its updates are measured")
        from mt.tools.dry_run import dry_run

        print(dry_run(run_config, run_dir))
        return
    from mt.pipeline import train_run

    train_run(run_config, run_dir)


@app.command("prepare")
def prepare_data(config: ConfigOption, overrides: SetOption = None) -> None:
    """Prepare the data only: fetch, clean, encode."""
    run_config = _config(config, overrides)
    if run_config.train.init_from is None:
        from mt.text.prepare import prepare_corpus

        print(_corpus_text(prepare_corpus(run_config)))
    else:  # the tokenizer is that of a model; reading one takes torch, which takes seconds to import
        from mt.pipeline import prepare

        print(_corpus_text(prepare(run_config)))


@app.command("doctor")
def examine_data(
    config: ConfigOption, overrides: SetOption = None, run_dir: RunDir = None, as_json: Json = False
) -> None:
    """Look at a config and a sample of its data, and say what will go wrong.

    Takes seconds and writes nothing. Exit status 2 where preparing or training would fail. docs/doctor.md has more.
    """
    run_config = _config(config, overrides)
    _log.info(f"{run_config.name}: looking at a sample of each corpus")
    from mt.tools.doctor import diagnosis_json, diagnosis_text, examine

    diagnosis = examine(run_config, run_dir or Path("runs") / run_config.name)
    if as_json:
        print(json.dumps(diagnosis_json(diagnosis), ensure_ascii=False))
    else:
        print(diagnosis_text(diagnosis, config))
    if diagnosis.has_errors:
        raise typer.Exit(2)


@app.command()
def translate(
    context: typer.Context,
    model: Model,
    input_file: Annotated[str, _option("FILE|-", "Text, one segment a line; - is standard input.", "--input")] = "-",
    output_file: Annotated[
        str, _option("FILE|-", "Grows as FILE.part, appears when whole; - is standard output.", "--output")
    ] = "-",
    beam_size: BeamSize = None,
    length_penalty: LengthPenalty = None,
    length_penalty_form: Annotated[
        Literal["wu", "plain"] | None, _option(None, f"wu: ((5 + n) / 6)^A; plain: n^A, n being tokens. {OF_MODEL}")
    ] = None,
    min_length: Annotated[int | None, _option("N", f"Tokens that a translation has at least. {OF_MODEL}")] = None,
    max_length: Annotated[
        int | None,
        _option("N", "Tokens that it has at most, with its end. Default: the model's config, or 50 over its source."),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None, _option("N", f"No N tokens come twice in the same order; 0: they may. {OF_MODEL}")
    ] = None,
    n_best: Annotated[int, _option("N", "Translations given for each line, best first.")] = 1,
    sample: Annotated[bool, _option(None, "Draw translations instead of searching for the best.", "--sample")] = False,
    temperature: Annotated[float | None, _option("T", "With --sample: below 1 sharper, above 1 flatter.")] = None,
    top_k: Annotated[int | None, _option("K", "With --sample: among the K most probable tokens.")] = None,
    top_p: Annotated[float | None, _option("P", "With --sample: among the fewest tokens that hold P together.")] = None,
    seed: Annotated[int | None, _option("N", "With --sample: another seed, other draws.")] = None,
    prefix: Annotated[
        Path | None, _option("FILE", "For each line what its translations begin with; may be empty.")
    ] = None,
    output_format: Annotated[
        Literal["text", "jsonl"], _option(None, "jsonl: one object a line, with scores, tokens and flags.", "--format")
    ] = "text",
    align: Annotated[bool, _option(None, "With --format jsonl: alignments of words.", "--align")] = False,
    alignments: Annotated[
        Path | None, _option("FILE", "Write alignments of words, as 0-0 1-2, one line for each line of text.")
    ] = None,
    shard: Annotated[
        str | None, _option("I/N", "Only the I-th of N blocks of the lines of a file; cat joins their outputs.")
    ] = None,
    is_resumed: Annotated[
        bool, _option(None, "Continue what an interrupted run left in OUTPUT.part.", "--resume")
    ] = False,
    is_strict: Annotated[
        bool, _option(None, "Refuse text that is not UTF-8, instead of reading bad bytes as U+FFFD.", "--strict")
    ] = False,
    retries: Annotated[
        bool, _option(None, "Search again for what repeats itself, or is far too long or short.", "--retry/--no-retry")
    ] = True,
    has_progress: Annotated[
        bool, _option(None, "Lines done, speed and time left, on standard error.", "--progress/--no-progress")
    ] = True,
    backend: Annotated[
        Literal["own", "ctranslate2"],
        _option(None, "What searches; ctranslate2 takes a folder from mt export --to ctranslate2."),
    ] = "own",
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    batch_tokens: BatchTokens = None,
    batch_sentences: BatchSentences = None,
) -> None:
    """Translate text, one line for each line.

    The order is kept, an empty line stays empty, and writing starts before the input ends. Lines are independent: apart
    from rounding, a translation does not depend on the other lines. docs/translate.md has more.
    """
    if sample:
        _refuse(context, ["--beam-size"], "is for searching, and --sample draws", "give one of them")
    else:
        _refuse(context, ["--temperature", "--top-k", "--top-p", "--seed"], "is for drawing", "add --sample")
    search = _search_changes(context)
    if n_best < 1:
        raise ConfigError("--n-best", f"expected at least 1, got {n_best}")
    if n_best > search.get("beam_size", n_best):
        raise ConfigError("--n-best", f"is {n_best}, more than --beam-size ({beam_size}) can give")
    for option, path in (("--prefix", prefix), ("--alignments", alignments)):
        if path == Path("-"):
            raise ConfigError(option, "expected a file, got -")
    if align and output_format != "jsonl":
        raise ConfigError("--align", "is for --format jsonl", "give that, or --alignments FILE for a separate file")
    if alignments is not None and output_file != "-" and os.path.realpath(alignments) == os.path.realpath(output_file):
        raise ConfigError("--alignments", f"{alignments} is the --output", "give two files")
    if backend == "ctranslate2":
        problem = "CTranslate2 gives no alignments"
        _refuse(context, ["--align", "--alignments"], problem, "take --backend own and the model itself")
    if is_resumed and output_file == "-":
        raise ConfigError("--resume", "continues an output file", "give --output FILE")
    from mt.decode.files import TranslateOptions, translate_files

    options = TranslateOptions(
        source=input_file,
        output=output_file,
        prefixes=prefix,
        alignments=alignments,
        is_jsonl=output_format == "jsonl",
        is_aligned=align,
        n_best=n_best,
        shard=None if shard is None else _shard(shard),
        is_strict=is_strict,
        is_resumed=is_resumed,
        has_progress=has_progress,
    )

    def load() -> Translator:
        if backend == "ctranslate2":
            from mt.export.ctranslate2 import load_translator

            return load_translator(model, device=device, precision=precision, retries=retries)
        from mt.decode.translator import Translator

        return Translator.load(model, device=device, precision=precision, retries=retries, n_processes=None)

    with _named_as_options():
        translate_files(options, load, search)


@app.command()
def score(
    context: typer.Context,
    model: Model,
    src: Annotated[Path, _option("FILE", "Text, one segment a line.")],
    tgt: Annotated[Path, _option("FILE", "Its translations, line by line.")],
    output_file: Annotated[str, _option("FILE|-", "Appears when it is whole; - is standard output.", "--output")] = "-",
    length_penalty: LengthPenalty = None,
    output_format: Annotated[
        Literal["text", "jsonl"], _option(None, "jsonl: one object a line, with a figure for each token.", "--format")
    ] = "text",
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    batch_tokens: Annotated[int | None, _option("N", f"Tokens of a side that are scored together. {OF_MODEL}")] = None,
) -> None:
    """Score given translations, one line for each pair of lines.

    Gives log-probability, the same per token, the score that a search ranks by, and the number of tokens, with tabs
    between them. Natural logarithms; the end of sentence counts as a token.
    """
    changes = _search_changes(context)
    from mt.config.settings import TextFiles
    from mt.text.corpora import reader_of

    pairs = reader_of(TextFiles(src=str(src), tgt=str(tgt)), ("", ""), "").pairs()
    first = list(islice(pairs, 1))  # what cannot be read shows before the model is loaded
    with _named_as_options(), _output_stream(output_file) as target:
        from mt.decode.scorer import Scorer

        scorer = Scorer.load(model, device=device, precision=precision)
        for result in scorer.score(chain(first, pairs), replace(scorer.decode, **changes)):
            target.write(f"{result.json_line() if output_format == 'jsonl' else result.text_line()}\n".encode())
    for warning in scorer.warnings():
        _log.warning(warning)


@app.command()
def explain(
    model: Model,
    src: Annotated[str, _option("TEXT", "A sentence.")],
    output: Annotated[Path, _option("FILE", "The page, one HTML file.")],
    tgt: Annotated[str | None, _option("TEXT", "Its translation. Default: the model's own.")] = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
) -> None:
    """Show where a model looks when it translates a sentence.

    Writes a page with a map of source and target tokens for each layer of the decoder.
    """
    with _named_as_options(), _output_stream(str(output)) as page:
        from mt.explain.attention import explained_page

        page.write(explained_page(model, src, tgt, device, precision).encode())


@app.command("eval")
def evaluate(
    context: typer.Context,
    model: Annotated[Path | None, _option("DIR", f"{MODEL_HELP} Scores its test sets.")] = None,
    tests: Tests = None,
    hyp: Annotated[Path | None, _option("FILE", "Translations, one a line.")] = None,
    refs: References = None,
    src: Annotated[Path | None, _option("FILE", "Source text of --hyp, one segment a line.")] = None,
    tgt_lang: TgtLang = "de",
    metrics: Metrics = None,
    has_confidence: Confidence = False,
    baseline: Annotated[
        Path | None, _option("FILE|RUN", "Other translations of the same text: is the difference chance?")
    ] = None,
    significance: Significance = "randomisation",
    n_samples: Samples = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    report_dir: Report = None,
    as_json: Json = False,
) -> None:
    """Score a model, or a file of translations.

    With sacreBLEU and its signatures: give --model, or --hyp and --ref. docs/eval.md says what the figures mean.
    """
    if model is not None:
        for_files = ["--hyp", "--ref", "--src", "--tgt-lang"]
        _refuse(context, for_files, "scores a file and --model scores a model", "give one of them")
    else:
        _refuse(context, ["--test", "--device", "--precision"], "is for scoring a model", "give --model")
        if hyp is None and not refs:
            raise ConfigError("--model", "missing", "give --model DIR, or --hyp FILE and --ref FILE")
        if hyp is None or not refs:
            missing, given = ("--hyp", "--ref") if hyp is None else ("--ref", "--hyp")
            raise ConfigError(missing, "missing", f"{given} needs it")
    if baseline is None:
        _refuse(context, ["--significance"], "is for --baseline and mt compare", "give --baseline")
        if not has_confidence:
            _refuse(context, ["--samples"], "is for --confidence and --baseline", "give one of them")
    with _named_as_options():
        from mt.evaluation.findings import EvalOptions

        options = EvalOptions(
            metrics or None, has_confidence, baseline, significance, n_samples, report_dir is not None
        )
        _check_report_folder(report_dir)
        from mt.evaluation.command import evaluate_files, evaluate_model
        from mt.report.terminal import evaluation_text

        if model is not None:
            report = evaluate_model(model, tests or [], device, precision, options)
        else:
            assert hyp is not None
            report = evaluate_files(hyp, refs or [], src, options, tgt_lang)
    for line in [] if as_json else report.warning_lines:
        _log.warning(line)
    shown = report.written(include={"test_sets", "comparison", "warnings"})
    print(json.dumps(shown, ensure_ascii=False) if as_json else evaluation_text(report), flush=True)
    _write_report(report, report_dir)  # after the scores, which a full disk shall not cost


@app.command()
def compare(
    context: typer.Context,
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN...", help="Runs or models; with --ref: files of translations.")
    ] = None,
    tests: Tests = None,
    refs: References = None,
    tgt_lang: TgtLang = "de",
    metrics: Metrics = None,
    has_confidence: Confidence = False,
    significance: Significance = "randomisation",
    n_samples: Samples = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    report_dir: Report = None,
    as_json: Json = False,
) -> None:
    """Compare several systems in one table, and say which of them can be told apart.

    Runs and models by the test sets that all of them have, or files of translations with --ref. docs/eval.md has more.
    """
    runs = runs or []
    if refs:
        for_models = ["--test", "--device", "--precision"]
        _refuse(context, for_models, "is for models, and with --ref files are compared", "leave it out")
    else:
        _refuse(context, ["--tgt-lang"], "is for files", "give --ref")
    if len(runs) < 2:
        usage = "mt compare A B, or mt compare --ref REF A B"
        raise ConfigError("RUN", f"expected two or more, got {len(runs) or 'none'}", usage)
    if not refs and (file := next((run for run in runs if run.is_file()), None)):
        raise ConfigError(file, "is a file", "give --ref to compare files of translations")
    with _named_as_options():
        from mt.evaluation.findings import EvalOptions

        options = EvalOptions(metrics or None, has_confidence, None, significance, n_samples, report_dir is not None)
        _check_report_folder(report_dir)
        from mt.evaluation.command import compare_files, compare_models
        from mt.report.terminal import comparison_text

        if refs:
            found = compare_files(runs, refs, options, tgt_lang)
        else:
            given = _given_options(context)  # with neither, what a finished run has translated is compared
            found = compare_models(runs, tests or [], given.get("--device"), given.get("--precision"), options)
    facts = found.written(exclude={"training"})
    print(json.dumps(facts, ensure_ascii=False) if as_json else comparison_text(found), flush=True)
    _write_report(found, report_dir)


@app.command()
def average(
    run_dir: Annotated[Path, _option("DIR", "The run folder.")],
    last: Annotated[int, _option("N", "How many of the last checkpoints.")],
) -> None:
    """Average the last checkpoints of a run.

    Makes a model folder of them and prints its path.
    """
    if last < 1:
        raise ConfigError("--last", f"expected at least 1, got {last}")
    from mt.pipeline import average_run

    print(average_run(run_dir, last))


@app.command("export")
def export_model(
    model: Annotated[Path, _option("DIR", MODEL_HELP)],
    to: Annotated[Literal["ctranslate2"], _option(None, "The engine that will run it.")],
    output: Annotated[Path, _option("DIR", "The new folder; appears when it is whole and checked.")],
    quantization: Annotated[
        Literal["float32", "int8", "float16"], _option(None, "How weights are stored; int8 is the fastest on a CPU.")
    ] = "float32",
    verify_with: Annotated[
        Path | None,
        _option("FILE", "Source text to translate for the check. Default: the model's own test set, if available."),
    ] = None,
) -> None:
    """Write a model for another engine.

    Translates some lines with both, and writes nothing if they do not translate alike.
    """
    from mt.export.ctranslate2 import export, format_export

    with _named_as_options():
        print(format_export(export(model, output, quantization, verify_with)))


@app.command("verify-resume")
def verify_resume(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None, _option("DIR", "Keep the runs in this new folder; a temporary one by default.")
    ] = None,
    updates: Annotated[int, _option("N", "Updates of each run.")] = 30,
    kills: Annotated[int, _option("N", "How often the second run is killed.")] = 3,
    as_json: Json = False,
) -> None:
    """Prove that a killed training continues as if nothing had happened.

    Trains in one go and with kills, and compares all weights, the training state and the logged losses bit for bit.
    """
    run_config = _config(config, overrides)
    from mt.tools.verify import verify_resume

    verdict = verify_resume(run_config, run_dir, n_updates=updates, n_kills=kills)
    print(json.dumps(verdict.as_json()) if as_json else verdict)
    if not verdict.is_proved:
        raise MTError(verdict.summary)


@app.command()
def bench(
    context: typer.Context,
    config: Annotated[str | None, _option("FILE", "A config file or name: measures its training.")] = None,
    overrides: SetOption = None,
    model: Annotated[Path | None, _option("DIR", f"{MODEL_HELP} Measures its decoding.")] = None,
    steps: Annotated[
        int | None, _option("N", "Updates timed, or rounds through the text. Default: 20 s; one round.")
    ] = None,
    random_data: Annotated[
        bool, _option(None, "Train on made-up sentences of WMT14's lengths instead of text.", "--random-data")
    ] = False,
    input_file: Annotated[
        Path | None, _option("FILE", "Translate this text, not the model's own test set.", "--input")
    ] = None,
    beam_size: BeamSize = None,
    batch_tokens: BatchTokens = None,
    batch_sentences: BatchSentences = None,
    device: DeviceOption = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Measure speed: of training with --config, of decoding with --model.

    Tokens a second and memory; of training where the time of a step goes and the fraction of the device's peak, of
    decoding how long a line alone takes.
    """
    if steps is not None and steps < 1:
        raise ConfigError("--steps", f"expected at least 1, got {steps}")
    if (config is None) == (model is None):
        raise ConfigError("--config", "measures training and --model measures decoding", "give one of them")
    if model is None:
        of_search = ["--beam-size", "--batch-tokens", "--batch-sentences"]
        for_model = ["--input", *of_search, "--device", "--precision"]
        _refuse(context, for_model, "is for measuring decoding", "it goes with --model")
        assert config is not None
        run_config = _config(config, overrides)
        from mt.tools.bench import bench_training, format_bench

        figures = bench_training(run_config, steps, random_data)
    else:
        _refuse(context, ["--set", "--random-data"], "is for measuring training", "it goes with --config")
        changes = _search_changes(context)
        from mt.tools.bench import bench_decoding, format_bench

        on = {"device": device, "precision": precision}
        with _named_as_options():
            figures = bench_decoding(model, input_file, n_rounds=steps, changes=changes, **on)
    print(json.dumps(figures, ensure_ascii=False) if as_json else format_bench(figures))


@config_commands.command("list")
def config_list() -> None:
    """Print the name of each config that ships with mt, and what it is for."""
    from mt.config.loading import shipped_configs

    for path in shipped_configs():
        purpose = path.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        print(f"{path.name:<16}{purpose}")


@config_commands.command("show")
def config_show(
    config: Annotated[str, typer.Argument(metavar="FILE", help=CONFIG_HELP)],
    overrides: SetOption = None,
) -> None:
    """Print every setting of a config as YAML, the defaults included."""
    from mt.config.loading import dump_config

    print(dump_config(_config(config, overrides)), end="")


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
    print("\n\n".join(explained(key, run_config) for key in keys or [""]))


@config_commands.command("init")
def config_init(
    path: Annotated[Path, typer.Argument(metavar="FILE", help="The new file.")] = Path("my.yaml"),
) -> None:
    """Write a config with comments to start from, for your own text."""
    from mt.config.reference import write_starter

    write_starter(path)
    print(f"wrote {path}: edit its languages and files, then run")
    print(f"  mt doctor --config {path}\n  mt train --config {path}")


@config_commands.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, for editors."""
    from mt.config.reference import config_schema as schema

    print(json.dumps(schema(), ensure_ascii=False, indent=1))


def main() -> None:
    """The entry point of the `mt` script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")
    try:
        app(prog_name="mt")
    except SystemExit as ended:
        if ended.code in (INTERRUPTED, TERMINATED):
            _leave(ended.code)
        raise


def _leave(status: int) -> NoReturn:
    """End now: Python would wait for threads that are in the middle of a batch."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # its reader may be gone
            stream.flush()
    os._exit(status)


def _corpus_text(corpus: PreparedCorpus) -> str:
    facts, train = corpus.manifest, corpus.manifest["train"]
    lines = [
        f"folder     {corpus.folder}",
        f"tokenizer  {facts['tokenizer']['kind']}, {facts['tokenizer']['vocab_size']:,} pieces",
        f"train      {train['pairs_kept']:,} of {train['pairs_read']:,} pairs kept, "
        f"{train['src_tokens']:,} source and {train['tgt_tokens']:,} target tokens",
        f"valid      {facts['valid']['pairs']:,} pairs, {facts['valid']['source']}",
        *(f"test       {entry['pairs']:,} pairs, {name}: {entry['source']}" for name, entry in facts["test"].items()),
    ]
    return "\n".join(lines)


# --- From options to what the package takes, and from results to text ------------------------------------------------


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Raise errors about settings and arguments of functions as errors about the options that gave them."""
    try:
        yield
    except ConfigError as error:
        from mt.decode.files import option_of

        raise error.renamed(option_of) from None


def _config(path_or_name: str, overrides: list[str] | None) -> RunConfig:
    from mt.config.loading import load_config

    return load_config(path_or_name, overrides or [])


def _given_options(context: typer.Context) -> dict[str, Any]:
    """Return option → value of what the user of a command gave."""
    names = {parameter.opts[0]: parameter.name or "" for parameter in context.command.params}
    sources = {option: context.get_parameter_source(name) for option, name in names.items()}
    given = [option for option, source in sources.items() if source is not None and source.name != "DEFAULT"]
    return {option: context.params[names[option]] for option in given}


def _refuse(context: typer.Context, options: Sequence[str], problem: str, fix: str) -> None:
    """Raise a ConfigError about the first of the options that is given."""
    given = _given_options(context)
    for option in options:
        if option in given:
            raise ConfigError(option, problem, fix)


def _search_changes(context: typer.Context) -> dict[str, Any]:
    """Return the settings of `decode` that options of this command give, by name.

    Raises:
        ConfigError: `decode` does not allow them; names the option.
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
def _output_stream(name: str) -> Iterator[BinaryIO]:
    from mt.system.files import explained_writes, whole_file

    if name == "-":
        yield sys.stdout.buffer
        return
    with explained_writes(Path(name)), whole_file(Path(name)) as stream:
        yield stream


def _check_report_folder(folder: Path | None) -> None:
    if folder is not None:
        from mt.evaluation.report_files import check_folder

        check_folder(folder)


def _write_report(facts: Evaluation | SystemComparison, folder: Path | None) -> None:
    if folder is not None:
        from mt.evaluation.report_files import write_report

        write_report(facts, folder)
        _log.info(f"report: {folder / 'report.html'}")
