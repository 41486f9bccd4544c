"""The `mt` command: parse, call one function, print. Text goes to standard output, everything else to standard error.

Exit status: 0 done, 2 the user's error (one line, no traceback), 130 interrupted, 141 the reader of our output went
away, 143 terminated, 1 our error (with traceback). Imports that cost time go inside the commands.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import logging
import math
import os
import select
import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NoReturn

import typer

from mt.errors import ConfigError, MTError

if TYPE_CHECKING:
    from mt.decode.files import Shard
    from mt.decode.scorer import PairScore, Scorer
    from mt.decode.translator import Aligner, Translator
    from mt.evaluate.findings import Question
    from mt.text.corpus import PreparedCorpus

_log = logging.getLogger(__name__)

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
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            _drop_output()
            where = error.filename or "standard output"
            print(f"error: {where}: cannot be written: {error.strerror}", file=sys.stderr)
            raise typer.Exit(2) from None
        except RuntimeError as error:
            if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported here
                raise
            problem = str(error).partition(". ")[0]
            print(f"error: {problem}: make batches smaller, or use the CPU", file=sys.stderr)
            raise typer.Exit(2) from None


def _drop_output() -> None:
    """What is still buffered goes nowhere, or Python complains at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _reader_is_gone() -> bool:
    """Whether it is standard output that broke, and not another pipe."""
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
app.add_typer(config_commands, name="config", help="List and show configs.")


class OutputFormat(StrEnum):
    text = "text"
    jsonl = "jsonl"


class Backend(StrEnum):
    own = "own"
    ctranslate2 = "ctranslate2"


class LengthPenaltyForm(StrEnum):
    wu = "wu"
    plain = "plain"


class Precision(StrEnum):
    auto = "auto"
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Significance(StrEnum):
    randomisation = "randomisation"
    bootstrap = "bootstrap"


class ExportTarget(StrEnum):
    ctranslate2 = "ctranslate2"


class Quantization(StrEnum):
    float32 = "float32"
    int8 = "int8"
    float16 = "float16"


ConfigOption = Annotated[
    str, typer.Option("--config", metavar="FILE", help="A config file, or the name of one that ships with mt.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a setting, such as train.max_steps=100; repeatable."),
]
MODEL_HELP = "A run folder, a checkpoint or a model folder."


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
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; runs/NAME by default.", show_default=False)
    ] = None,
    is_dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would happen, how long and in how much memory; write nothing.")
    ] = False,
) -> None:
    """Train a model, from raw text to a report.

    Runs the stages that are missing: prepare, train, average, evaluate. Goes on where it stopped.
    """
    from mt.config.loading import load_config

    run_config = load_config(config, overrides or [])
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
    from mt.config.loading import load_config

    run_config = load_config(config, overrides or [])
    if run_config.train.init_from is None:
        from mt.text.prepare import prepare_corpus

        print(_corpus_text(prepare_corpus(run_config)))
    else:  # the tokenizer is that of a model; reading one takes torch, which takes seconds to import
        from mt.pipeline import prepare

        print(_corpus_text(prepare(run_config)))


@app.command("doctor")
def examine_data(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None, typer.Option(metavar="DIR", help="The run folder; runs/NAME by default.", show_default=False)
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object on standard output, and nothing else.")
    ] = False,
) -> None:
    """Look at a config and a sample of its data, and say what will go wrong.

    Takes seconds and writes nothing. Exit status 2 where preparing or training would fail. docs/doctor.md has more.
    """
    from mt.config.loading import load_config

    run_config = load_config(config, overrides or [])
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
    model: Annotated[str, typer.Option(metavar="DIR", help=MODEL_HELP)],
    input_file: Annotated[
        str, typer.Option("--input", metavar="FILE|-", help="Text, one segment a line; - is standard input.")
    ] = "-",
    output_file: Annotated[
        str,
        typer.Option(
            "--output", metavar="FILE|-", help="Grows as FILE.part, appears when whole; - is standard output."
        ),
    ] = "-",
    beam_size: Annotated[
        int | None, typer.Option(metavar="N", help="Hypotheses kept open; 1 is greedy. Default: the model's config.")
    ] = None,
    length_penalty: Annotated[
        float | None,
        typer.Option(metavar="A", help="Exponent of the length penalty; 0: none. Default: the model's config."),
    ] = None,
    length_penalty_form: Annotated[
        LengthPenaltyForm | None,
        typer.Option(help="wu: ((5 + n) / 6)^A; plain: n^A, n being tokens. Default: the model's config."),
    ] = None,
    min_length: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens that a translation has at least. Default: the model's config."),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Tokens that it has at most, with its end. Default: the model's config, or 50 over its source.",
        ),
    ] = None,
    no_repeat_ngram: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="No N tokens come twice in the same order; 0: they may. Default: the model's config."
        ),
    ] = None,
    n_best: Annotated[int, typer.Option(metavar="N", help="Translations given for each line, best first.")] = 1,
    sample: Annotated[
        bool, typer.Option("--sample", help="Draw translations instead of searching for the best.")
    ] = False,
    temperature: Annotated[
        float | None, typer.Option(metavar="T", help="With --sample: below 1 sharper, above 1 flatter.")
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(metavar="K", help="With --sample: among the K most probable tokens.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(metavar="P", help="With --sample: among the fewest tokens that hold P together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="With --sample: another seed, other draws.")] = None,
    prefix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For each line what its translations begin with; may be empty."),
    ] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="jsonl: one object a line, with scores, tokens and flags.")
    ] = OutputFormat.text,
    align: Annotated[bool, typer.Option("--align", help="With --format jsonl: alignments of words.")] = False,
    alignments: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write alignments of words, as 0-0 1-2, one line for each line of text."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Only the I-th of N blocks of the lines of a file; cat joins their outputs."),
    ] = None,
    is_resumed: Annotated[
        bool, typer.Option("--resume", help="Go on with what an interrupted run left in OUTPUT.part.")
    ] = False,
    is_strict: Annotated[
        bool, typer.Option("--strict", help="Refuse text that is not UTF-8, instead of reading bad bytes as U+FFFD.")
    ] = False,
    retries: Annotated[
        bool,
        typer.Option("--retry/--no-retry", help="Search again for what repeats itself, or is far too long or short."),
    ] = True,
    has_progress: Annotated[
        bool, typer.Option("--progress/--no-progress", help="Lines done, speed and time left, on standard error.")
    ] = True,
    backend: Annotated[
        Backend, typer.Option(help="What searches; ctranslate2 takes a folder from mt export --to ctranslate2.")
    ] = Backend.own,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of matrix products.")] = Precision.auto,
    batch_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Source tokens translated together. Default: the model's config."),
    ] = None,
    batch_sentences: Annotated[
        int | None, typer.Option(metavar="N", help="Sentences translated together at most. Default: no such limit.")
    ] = None,
) -> None:
    """Translate text, one line for each line.

    The order is kept, an empty line stays empty, and writing starts before the input ends. A line stands alone: but for
    rounding, its translation does not depend on the others. docs/translate.md has more.
    """
    search = {
        "beam_size": beam_size,
        "length_penalty": length_penalty,
        "length_penalty_form": length_penalty_form and length_penalty_form.value,
        "min_length": min_length,
        "max_length": max_length,
        "no_repeat_ngram_size": no_repeat_ngram,
        "sample": sample or None,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "batch_tokens": batch_tokens,
        "batch_sentences": batch_sentences,
    }
    _check_sampling_options(search)
    _check_search_options(search, n_best)
    _check_file_options(
        input_file, output_file, prefix, alignments, is_jsonl=output_format is OutputFormat.jsonl, align=align
    )
    if backend is Backend.ctranslate2 and (align or alignments):
        option = "--align" if align else "--alignments"
        raise ConfigError(option, "CTranslate2 gives no alignments", "take --backend own and the model itself")
    if is_resumed and output_file == "-":
        raise ConfigError("--resume", "goes on with an output file", "give --output FILE")
    from mt.decode.files import Job, translate_files

    job = Job(
        source=input_file,
        output=output_file,
        prefixes=prefix,
        alignments=alignments,
        is_jsonl=output_format is OutputFormat.jsonl,
        is_aligned=align,
        n_best=n_best,
        shard=None if shard is None else _shard(shard),
        is_strict=is_strict,
        is_resumed=is_resumed,
        has_progress=has_progress,
    )

    def load() -> Translator:
        if backend is Backend.ctranslate2:
            from mt.export.ctranslate2 import load_translator

            return load_translator(model, device=device, precision=precision.value, retries=retries)
        from mt.decode.translator import Translator

        return Translator.load(model, device=device, precision=precision.value, retries=retries, n_processes=None)

    with _named_as_options():
        translate_files(job, load, _given(search), _aligner if align or alignments else None)


@app.command()
def score(
    model: Annotated[str, typer.Option(metavar="DIR", help=MODEL_HELP)],
    src: Annotated[Path, typer.Option(metavar="FILE", help="Text, one segment a line.")],
    tgt: Annotated[Path, typer.Option(metavar="FILE", help="Its translations, line by line.")],
    output_file: Annotated[
        str, typer.Option("--output", metavar="FILE|-", help="Appears when it is whole; - is standard output.")
    ] = "-",
    length_penalty: Annotated[
        float | None,
        typer.Option(metavar="A", help="Exponent of the length penalty; 0: none. Default: the model's config."),
    ] = None,
    output_format: Annotated[
        OutputFormat, typer.Option("--format", help="jsonl: one object a line, with a figure for each token.")
    ] = OutputFormat.text,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of matrix products.")] = Precision.auto,
    batch_tokens: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of a side that are scored together. Default: the model's config."),
    ] = None,
) -> None:
    """Score given translations, one line for each pair of lines.

    Gives log-probability, the same per token, the score that a search ranks by, and the number of tokens, with tabs
    between them. Natural logarithms; the end of sentence counts as a token.
    """
    changes = {"length_penalty": length_penalty, "batch_tokens": batch_tokens}
    _check_search_options({"beam_size": None, **changes}, n_best=1)
    from mt.config.settings import TextFiles
    from mt.text.corpora import reader_of

    pairs = reader_of(TextFiles(src=str(src), tgt=str(tgt)), ("", ""), "").pairs()
    first = list(islice(pairs, 1))  # what cannot be read shows before the model is loaded
    with _named_as_options(), _output_stream(output_file) as target:
        from mt.decode.scorer import Scorer

        scorer = Scorer.load(model, device=device, precision=precision.value)
        for result in scorer.score(chain(first, pairs), replace(scorer.decode, **_given(changes))):
            line = _score_json(result) if output_format is OutputFormat.jsonl else _score_text(result)
            target.write(line.encode())
    _warn_of_long_pairs(scorer)


@app.command()
def explain(
    model: Annotated[str, typer.Option(metavar="DIR", help=MODEL_HELP)],
    src: Annotated[str, typer.Option(metavar="TEXT", help="A sentence.")],
    output: Annotated[Path, typer.Option(metavar="FILE", help="The page, HTML that stands alone.")],
    tgt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Its translation. Default: the model's own.", show_default=False)
    ] = None,
    device: Annotated[str, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N.")] = "auto",
    precision: Annotated[Precision, typer.Option(help="Of matrix products.")] = Precision.auto,
) -> None:
    """Show where a model looks when it translates a sentence.

    Writes a page with a map of source and target tokens for each layer of the decoder.
    """
    from mt.system.files import explained_writes, whole_file

    with _named_as_options(), explained_writes(output), whole_file(output) as page:
        from mt.explain.heatmap import explained_page

        page.write(explained_page(model, src, tgt, device, precision.value).encode())


@app.command("eval")
def evaluate(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(metavar="RUN", help="With --compare: runs or models; with --ref: files.", show_default=False),
    ] = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help=f"{MODEL_HELP} Scores its test sets.")] = None,
    tests: Annotated[
        list[str] | None, typer.Option("--test", metavar="NAME", help="Only this test set of the models; repeatable.")
    ] = None,
    hyp: Annotated[Path | None, typer.Option(metavar="FILE", help="Translations, one a line.")] = None,
    refs: Annotated[
        list[Path] | None,
        typer.Option("--ref", metavar="FILE", help="References, one a line; repeatable, for several of each line."),
    ] = None,
    src: Annotated[Path | None, typer.Option(metavar="FILE", help="Source text of --hyp, one segment a line.")] = None,
    tgt_lang: Annotated[
        str | None,
        typer.Option(metavar="LANG", help="Whose rules bleu-2017 tokenises --hyp by. Default: de.", show_default=False),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="bleu, chrf, chrf++, bleu-lc, ter, bleu-2017 or all; repeatable. Default: the first four.",
        ),
    ] = None,
    has_confidence: Annotated[
        bool, typer.Option("--confidence", help="Intervals that hold 95% of bootstrap samples.")
    ] = False,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE|RUN", help="Other translations of the same text: is the difference chance?"),
    ] = None,
    is_comparison: Annotated[
        bool, typer.Option("--compare", help="One table of several RUNs: which of them can be told apart?")
    ] = False,
    significance: Annotated[
        Significance | None,
        typer.Option(help="How differences are tested. Default: randomisation.", show_default=False),
    ] = None,
    n_samples: Annotated[
        int | None,
        typer.Option("--samples", metavar="N", help="Default: 1,000 of the bootstrap, 10,000 of the randomisation."),
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N. Default: auto.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of matrix products. Default: auto.")] = None,
    report_dir: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="DIR", help="Write report.html, .json and .md there: where it is good and bad."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with unrounded scores.")] = False,
) -> None:
    """Score a model, a file of translations, or several runs side by side.

    With sacreBLEU and its signatures: give --model, or --hyp and --ref, or --compare RUN RUN. docs/eval.md says what
    the figures mean.
    """
    if is_comparison:
        of_models = {"--test": tests or None, "--device": device, "--precision": precision}
        alone: dict[str, Any] = {"--model": model, "--hyp": hyp, "--src": src, "--baseline": baseline}
        _check_compare_options(runs or [], bool(refs), alone, of_models if refs else {"--tgt-lang": tgt_lang})
    elif runs:
        raise ConfigError(runs[0], "is given alone", "give it with --model, or several runs with --compare")
    else:
        _check_eval_options(
            model,
            hyp,
            refs,
            {"--src": src, "--tgt-lang": tgt_lang},
            {"--test": tests or None, "--device": device, "--precision": precision},
        )
    if significance is not None and baseline is None and not is_comparison:
        raise ConfigError("--significance", "is for --baseline and --compare", "give one of them")
    if n_samples is not None and baseline is None and not has_confidence and not is_comparison:
        raise ConfigError("--samples", "is for --confidence, --baseline and --compare", "give one of them")
    from mt.evaluate.findings import Question

    test_name = (significance or Significance.randomisation).value
    on = (device, None if precision is None else precision.value)
    with _named_as_options():
        if report_dir is not None:
            from mt.evaluate.report_files import check_folder

            check_folder(report_dir)
        question = Question(metrics or None, has_confidence, baseline, test_name, n_samples, report_dir is not None)
        if is_comparison:
            _compare(runs or [], tests or [], on, refs or [], tgt_lang or "de", question, report_dir, as_json)
        else:
            _evaluate(model, tests or [], on, hyp, refs or [], src, tgt_lang or "de", question, report_dir, as_json)


def _evaluate(
    model: Path | None,
    tests: list[str],
    on: tuple[str | None, str | None],
    hyp: Path | None,
    refs: list[Path],
    src: Path | None,
    tgt_lang: str,
    question: Question,
    report_dir: Path | None,
    as_json: bool,
) -> None:
    """Score a model or a file, and print what was found."""
    from mt.evaluate.findings import warning_lines
    from mt.evaluation import evaluate_files, evaluate_model, evaluation_text

    if model is not None:
        device, precision = on
        report = evaluate_model(model, tests, device or "auto", precision or "auto", question)
    else:
        assert hyp is not None
        report = evaluate_files(hyp, refs, src, question, tgt_lang)
    if as_json:
        shown = ("test_sets", "comparison", "warnings")
        print(json.dumps({key: report[key] for key in shown if key in report}, ensure_ascii=False), flush=True)
    else:
        for line in warning_lines(report):
            _log.warning(line)
        print(evaluation_text(report), flush=True)
    if report_dir is not None:  # after the scores, which a full disk shall not cost
        from mt.evaluate.report_files import evaluation_facts, write_evaluation

        write_evaluation(evaluation_facts(str(model or hyp), **report), report_dir)
        _tell_of_report(report_dir)


def _compare(
    runs: list[Path],
    tests: list[str],
    on: tuple[str | None, str | None],
    refs: list[Path],
    tgt_lang: str,
    question: Question,
    report_dir: Path | None,
    as_json: bool,
) -> None:
    """Compare several models, or files where there are references, and print what was found."""
    from mt.evaluate.comparison import comparison_text
    from mt.evaluation import compare_files, compare_models

    found = compare_files(runs, refs, question, tgt_lang) if refs else compare_models(runs, tests, *on, question)
    if as_json:
        shown = {key: value for key, value in found.items() if key != "training"}
        print(json.dumps(shown, ensure_ascii=False), flush=True)
    else:
        print(comparison_text(found), flush=True)
    if report_dir is not None:
        from mt.evaluate.report_files import write_comparison

        write_comparison(found, report_dir)
        _tell_of_report(report_dir)


def _tell_of_report(folder: Path) -> None:
    _log.info(f"report: {folder / 'report.html'}")


@app.command()
def average(
    run_dir: Annotated[Path, typer.Option(metavar="DIR", help="The run folder.")],
    last: Annotated[int, typer.Option(metavar="N", help="How many of the last checkpoints.")],
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
    model: Annotated[Path, typer.Option(metavar="DIR", help=MODEL_HELP)],
    to: Annotated[ExportTarget, typer.Option(help="The engine that will run it.")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="The new folder; appears when it is whole and checked.")],
    quantization: Annotated[
        Quantization, typer.Option(help="How weights are stored; int8 is the fastest on a CPU.")
    ] = Quantization.float32,
    verify_with: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Source text to translate for the check. Default: the model's own test set, if at hand.",
        ),
    ] = None,
) -> None:
    """Write a model for another engine.

    Translates some lines with both, and writes nothing if they do not translate alike.
    """
    from mt.export.ctranslate2 import export, format_export

    with _named_as_options():
        print(format_export(export(model, output, quantization.value, verify_with)))


@app.command("verify-resume")
def verify_resume(
    config: ConfigOption,
    overrides: SetOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR", help="Keep the runs in this new folder; a temporary one by default.", show_default=False
        ),
    ] = None,
    updates: Annotated[int, typer.Option(metavar="N", help="Updates of each run.")] = 30,
    kills: Annotated[int, typer.Option(metavar="N", help="How often the second run is killed.")] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Prove that a killed training goes on as if nothing had happened.

    Trains in one go and with kills, and compares all weights, the training state and the logged losses bit for bit.
    """
    from mt.config.loading import load_config

    run_config = load_config(config, overrides or [])
    from mt.tools.verify import verify_resume

    verdict = verify_resume(run_config, run_dir, n_updates=updates, n_kills=kills)
    print(json.dumps(verdict.as_json()) if as_json else verdict)
    if not verdict.is_proved:
        raise MTError(verdict.summary)


@app.command()
def bench(
    config: Annotated[
        str | None, typer.Option(metavar="FILE", help="A config file or name: measures its training.")
    ] = None,
    overrides: SetOption = None,
    model: Annotated[Path | None, typer.Option(metavar="DIR", help=f"{MODEL_HELP} Measures its decoding.")] = None,
    steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Updates timed, or rounds through the text. Default: 20 s; one round."),
    ] = None,
    random_data: Annotated[
        bool, typer.Option("--random-data", help="Train on made-up sentences of WMT14's lengths instead of text.")
    ] = False,
    input_file: Annotated[
        Path | None, typer.Option("--input", metavar="FILE", help="Translate this text, not the model's own test set.")
    ] = None,
    beam_size: Annotated[int | None, typer.Option(metavar="N", help="Default: the model's config.")] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(metavar="N", help="Source tokens translated together. Default: the model's config.")
    ] = None,
    batch_sentences: Annotated[
        int | None, typer.Option(metavar="N", help="Sentences translated together at most. Default: no such limit.")
    ] = None,
    device: Annotated[str | None, typer.Option(metavar="D", help="auto, cpu, cuda or cuda:N. Default: auto.")] = None,
    precision: Annotated[Precision | None, typer.Option(help="Of matrix products. Default: auto.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object with unrounded figures.")] = False,
) -> None:
    """Measure speed: of training with --config, of decoding with --model.

    Tokens a second and memory; of training where the time of a step goes and the share of what the device can do, of
    decoding how long a line alone takes.
    """
    if steps is not None and steps < 1:
        raise ConfigError("--steps", f"expected at least 1, got {steps}")
    for_model = {
        "--input": input_file,
        "--beam-size": beam_size,
        "--batch-tokens": batch_tokens,
        "--batch-sentences": batch_sentences,
        "--device": device,
        "--precision": precision,
    }
    for_config = {"--set": overrides or None, "--random-data": random_data or None}
    if (config is None) == (model is None):
        raise ConfigError("--config", "measures training and --model measures decoding", "give one of them")
    for option, value in (for_config if config is None else for_model).items():
        if value is not None:
            what, needed = ("training", "--config") if config is None else ("decoding", "--model")
            raise ConfigError(option, f"is for measuring {what}", f"it goes with {needed}")
    if config is not None:
        from mt.config.loading import load_config

        run_config = load_config(config, overrides or [])
        from mt.tools.bench import bench_training, format_bench

        figures = bench_training(run_config, steps, random_data)
    else:
        assert model is not None
        changes = {"beam_size": beam_size, "batch_tokens": batch_tokens, "batch_sentences": batch_sentences}
        _check_search_options(changes, n_best=1)
        from mt.tools.bench import bench_decoding, format_bench

        with _named_as_options():
            figures = bench_decoding(
                model,
                input_file,
                n_rounds=steps,
                changes=_given(changes),
                device=device or "auto",
                precision=(precision or Precision.auto).value,
            )
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
    config: Annotated[
        str, typer.Argument(metavar="FILE", help="A config file, or the name of one that ships with mt.")
    ],
    overrides: SetOption = None,
) -> None:
    """Print every setting of a config as YAML, the defaults included."""
    from mt.config.loading import dump_config, load_config

    print(dump_config(load_config(config, overrides or [])), end="")


@config_commands.command("schema")
def config_schema() -> None:
    """Print the JSON schema of configs, by which an editor completes and checks them."""
    from mt.config.loading import config_schema as schema

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
        with contextlib.suppress(OSError, ValueError):  # whoever read it may be gone
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


# --- mt translate -----------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _named_as_options() -> Iterator[None]:
    """Raise errors about settings and arguments of functions as errors about the options that gave them."""
    try:
        yield
    except ConfigError as error:
        from mt.decode.files import option_of

        raise error.renamed(option_of) from None


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _check_search_options(search: dict[str, Any], n_best: int) -> None:
    """The limits are those of the settings in `decode`; the messages name the options."""
    from mt.config.settings import DecodeConfig
    from mt.decode.files import search_settings

    search_settings(DecodeConfig(), _given(search))
    if n_best < 1:
        raise ConfigError("--n-best", f"expected at least 1, got {n_best}")
    if search["beam_size"] is not None and n_best > search["beam_size"]:
        raise ConfigError("--n-best", f"is {n_best}, more than --beam-size ({search['beam_size']}) can give")


def _check_sampling_options(search: dict[str, Any]) -> None:
    from mt.decode.files import option_of

    if search["sample"]:
        if search["beam_size"] is not None:
            raise ConfigError("--beam-size", "is for searching, and --sample draws", "give one of them")
        return
    for setting in ("temperature", "top_k", "top_p", "seed"):
        if search[setting] is not None:
            raise ConfigError(option_of(setting), "is for drawing", "add --sample")


def _check_file_options(
    source: str, output: str, prefix: Path | None, alignments: Path | None, *, is_jsonl: bool, align: bool
) -> None:
    for option, path in (("--prefix", prefix), ("--alignments", alignments)):
        if path == Path("-"):
            raise ConfigError(option, "expected a file, got -")
    if align and not is_jsonl:
        raise ConfigError("--align", "is for --format jsonl", "give that, or --alignments FILE for a file of their own")
    if alignments is not None and output != "-" and os.path.realpath(alignments) == os.path.realpath(output):
        raise ConfigError("--alignments", f"{alignments} is the --output", "give two files")


def _shard(text: str) -> Shard:
    from mt.decode.files import Shard

    number, slash, n_shards = text.partition("/")
    if not (slash and number.isdecimal() and n_shards.isdecimal() and 1 <= int(number) <= int(n_shards)):
        raise ConfigError("--shard", f"expected I/N, such as 3/8, with I from 1 to N, got {text}")
    return Shard(int(number), int(n_shards))


def _aligner(translator: Translator) -> Aligner:
    """What finds alignments in the attention of the translator's own model."""
    from mt.explain.attention import align

    model = translator.model
    return lambda sources, targets: align(model, sources, targets)


# --- mt score ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _output_stream(name: str) -> Iterator[BinaryIO]:
    from mt.system.files import explained_writes, whole_file

    if name == "-":
        yield sys.stdout.buffer
        return
    with explained_writes(Path(name)), whole_file(Path(name)) as stream:
        yield stream


def _score_text(result: PairScore) -> str:
    figures = (result.log_prob, result.mean_log_prob, result.score)
    # Adding zero makes nothing of the sign of a zero.
    return "".join(f"{round(figure, 4) + 0.0:.4f}\t" for figure in figures) + f"{result.n_tokens}\n"


def _score_json(result: PairScore) -> str:
    """JSON has no infinity: the figures of a pair that was not scored are null."""
    figures = {"log_prob": result.log_prob, "mean_log_prob": result.mean_log_prob, "score": result.score}
    entry = {
        "line": result.pair.line,
        "src": result.pair.src,
        "tgt": result.pair.tgt,
        **{name: figure if math.isfinite(figure) else None for name, figure in figures.items()},
        "n_tokens": result.n_tokens,
        "pieces": result.pieces,
        "token_log_probs": [round(log_prob, 6) for log_prob in result.token_log_probs],
    }
    return json.dumps(entry, ensure_ascii=False) + "\n"


def _warn_of_long_pairs(scorer: Scorer) -> None:
    if n_scored := scorer.n_long - scorer.n_too_long:
        problem = f"had more than {scorer.max_tokens:,} tokens on a side, which the model has not learnt from"
        _log.warning(f"{n_scored:,} of {scorer.n_pairs:,} pairs {problem}: trust their scores less")
    if scorer.n_too_long:
        problem = f"had more than {scorer.longest:,} tokens on a side and were not scored: -inf, or null in jsonl"
        _log.warning(f"{scorer.n_too_long:,} of {scorer.n_pairs:,} pairs {problem}")


# --- mt eval ----------------------------------------------------------------------------------------------------------


def _check_compare_options(
    runs: list[Path], has_references: bool, alone: dict[str, Any], of_others: dict[str, Any]
) -> None:
    """Several runs are compared, or files with --ref, and nothing else is scored."""
    for option, value in alone.items():
        if value is not None:
            raise ConfigError(option, "is for scoring one system, --compare compares several", "give one of them")
    for option, value in of_others.items():
        if value is not None:
            what = "models, and with --ref files are compared" if has_references else "files: give --ref"
            raise ConfigError(option, f"is for {what}")
    if len(runs) < 2:
        n = len(runs) or "none"
        usage = "mt eval --compare A B, or --compare --ref REF A B"
        raise ConfigError("--compare", f"expected two or more, got {n}", usage)
    if not has_references and (file := next((run for run in runs if run.is_file()), None)):
        raise ConfigError("--compare", f"{file} is a file", "give --ref to compare files of translations")


def _check_eval_options(
    model: Path | None,
    hyp: Path | None,
    refs: list[Path] | None,
    for_files: dict[str, Any],
    for_model: dict[str, Any],
) -> None:
    """Either a model is scored or a file, each with its own options."""
    if model is not None:
        for option, value in {"--hyp": hyp, "--ref": refs or None, **for_files}.items():
            if value is not None:
                raise ConfigError(option, "scores a file and --model scores a model", "give one of them")
        return
    for option, setting in for_model.items():
        if setting is not None:
            raise ConfigError(option, "is for scoring a model", "give --model")
    if hyp is None and not refs:
        raise ConfigError("--model", "missing", "give --model DIR, or --hyp FILE and --ref FILE")
    if hyp is None or not refs:
        missing, given = ("--hyp", "--ref") if hyp is None else ("--ref", "--hyp")
        raise ConfigError(missing, "missing", f"{given} needs it")
