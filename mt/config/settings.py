"""Every setting of a run: name, type, default, unit. Contradictions are refused where the values are made."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any, Literal, TypedDict, TypeVar

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Strict, Tag

from mt.config.validation import Contradiction, fields_of, kinds_of, section

T = TypeVar("T")
MAX_BEAM_SIZE = 64
# YAML 1.1 reads a number with an exponent as text, unless it has both a point and a sign: 3e-4, 1e6, 1.5e3.
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")
# In brackets, so that no symbol cuts a word; <s>, <unk> and the bytes are SentencePiece's own.
SYMBOL = re.compile(r"<(?!(?:s|pad|unk|0x[0-9A-F]{2})>)[^\W_][\w.:+-]*>")


def parse_duration(text: str) -> float:
    """Return the seconds in a duration such as `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        ValueError: the text is not a duration.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ValueError(f"expected a duration such as 90s, 30m or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    duration = hours * 3600 + minutes * 60 + seconds
    if duration <= 0:
        raise ValueError(f"expected a duration above 0, got {text!r}")
    return duration


def _is_duration(text: str) -> str:
    parse_duration(text)
    return text


def _as_float(value: Any) -> Any:
    return float(value) if isinstance(value, str) and _NUMBER_WITH_EXPONENT.fullmatch(value) else value


def _as_int(value: Any) -> Any:
    number = _as_float(value)
    return int(number) if isinstance(number, float) and number.is_integer() else value


def _matching(pattern: str, expectation: str) -> AfterValidator:
    """Return what refuses text of which not all matches the pattern; `expectation` says what it should be."""

    def check(text: str) -> str:
        if re.fullmatch(pattern, text) is None:
            raise ValueError(f"{expectation}, got {text!r}")
        return text

    return AfterValidator(check)


_AS_INT, _AS_FLOAT = BeforeValidator(_as_int), BeforeValidator(_as_float)
# true and "3" are not numbers here, as in YAML; the descriptions are for messages, after "expected".
Flag = Annotated[bool, Strict()]
Int = Annotated[int, Strict(), _AS_INT]
Natural = Annotated[int, Strict(), Field(ge=0, description="at least 0"), _AS_INT]
Positive = Annotated[int, Strict(), Field(ge=1, description="at least 1"), _AS_INT]
PositiveFloat = Annotated[float, Strict(), Field(gt=0, allow_inf_nan=False, description="a number above 0"), _AS_FLOAT]
Fraction = Annotated[float, Strict(), Field(ge=0, le=1, description="0 to 1"), _AS_FLOAT]
Probability = Annotated[float, Strict(), Field(ge=0, lt=1, description="0 ≤ x < 1"), _AS_FLOAT]
# A run that has begun may change these settings; anything else would make it another run.
CHANGEABLE = "may change"
Changeable = Annotated[T, CHANGEABLE]
# A section, a list or named entries without content are the same as empty ones.
Section = Annotated[T, BeforeValidator(lambda value: {} if value is None else value)]
Entries = Annotated[tuple[T, ...], BeforeValidator(lambda value: [] if value is None else value)]
_NAME = r"[\w+-][\w.+-]*"
Symbol = Annotated[str, _matching(SYMBOL.pattern, "expected a symbol such as <bt>, but not <s>, <pad> or <unk>")]
RunName = Annotated[str, _matching(_NAME, "may hold letters, digits and . _ + - only (it names the run folder)")]
TestName = Annotated[str, _matching(_NAME, "the name of a test set may hold letters, digits and . _ + - only")]
Lang = Annotated[str, Field(min_length=1, description="give a language code such as en")]
Device = Annotated[str, _matching(r"auto|cpu|cuda(:\d+)?", "expected auto, cpu, cuda or cuda:N")]
Duration = Annotated[str, AfterValidator(_is_duration)]
LengthRatio = Annotated[float, Strict(), Field(ge=1, description="at least 1"), _AS_FLOAT]
Weight = Annotated[float, Strict(), Field(gt=0, le=1000, description="a number above 0 and up to 1000"), _AS_FLOAT]
VocabSize = Annotated[int, Strict(), Field(ge=300, description="at least 300"), _AS_INT]
Coverage = Annotated[float, Strict(), Field(ge=0.9, le=1, description="a fraction from 0.9 to 1.0"), _AS_FLOAT]
MaxTokens = Annotated[int, Strict(), Field(ge=2, description="at least 2"), _AS_INT]
Decay = Annotated[float, Strict(), Field(gt=0, lt=1, description="0 < x < 1"), _AS_FLOAT]
BeamSize = Annotated[int, Strict(), Field(ge=1, le=MAX_BEAM_SIZE, description=f"1 to {MAX_BEAM_SIZE}"), _AS_INT]
PenaltyExponent = Annotated[float, Strict(), Field(ge=0, le=10, description="0 to 10"), _AS_FLOAT]
Temperature = Annotated[float, Strict(), Field(ge=0.01, le=100, description="0.01 to 100"), _AS_FLOAT]
TopP = Annotated[float, Strict(), Field(gt=0, le=1, description="a number above 0 and up to 1"), _AS_FLOAT]


# --- Corpora ----------------------------------------------------------------------------------------------------------


@section()
class Corpus(ABC):
    """Parallel text of any kind."""

    weight: Weight = 1.0  # copies of each pair in a training epoch; the fraction is drawn by chance
    tag: Symbol | None = None  # symbol in front of each source segment, such as <bt> for back-translations

    @property
    @abstractmethod
    def description(self) -> str:
        """What the user wrote, in a few words."""

    @property
    def files(self) -> tuple[str, ...]:
        """The files that the user named."""
        return ()

    def side(self, number: int, lang: str) -> str:
        """Return what the source side (0) or the target side (1) is called: its file, or corpus and language."""
        return self.files[number] if len(self.files) == 2 else f"{self.description} ({lang})"


@section()
class TextFiles(Corpus):
    """Two text files, one segment a line; they may be compressed (.gz, .xz, .zst)."""

    src: str
    tgt: str  # line i translates line i of src

    @property
    def description(self) -> str:
        return f"{self.src} + {self.tgt}"

    @property
    def files(self) -> tuple[str, ...]:
        return self.src, self.tgt


@section()
class _Columns(Corpus):
    """Rows, of which two columns hold the text."""

    src_column: Positive | str | None = None  # name or 1-based number; null: the first, or the language
    tgt_column: Positive | str | None = None  # null: the second of two, or the language

    def __post_init__(self) -> None:
        if (self.src_column is None) != (self.tgt_column is None):
            raise Contradiction("", "src_column and tgt_column go together", "give both or none")
        if self.src_column is not None and self.src_column == self.tgt_column:
            raise Contradiction("", f"src_column and tgt_column are the same column, {self.src_column}")

    @property
    def columns(self) -> tuple[int | str, int | str] | None:
        """The columns of the two sides, None where none are given."""
        return None if self.src_column is None or self.tgt_column is None else (self.src_column, self.tgt_column)


@section()
class Table(_Columns):
    """One file with both sides."""

    file: str  # .tsv, .jsonl or .parquet

    @property
    def description(self) -> str:
        return self.file

    @property
    def files(self) -> tuple[str, ...]:
        return (self.file,)


@section()
class HubDataset(_Columns):
    """A data set of the hub, or a local folder in the hub's layout."""

    dataset: str
    config: str | None = None  # configuration of the data set, such as de-en
    split: str | None = None  # such as train[:10%]; the role's own name by default
    streaming: Flag = False  # read the data set as it comes, without a copy on the disk

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.streaming and "[" in (self.split or ""):
            problem = f"{self.split} is a part of a split"
            raise Contradiction("split", problem, "give a whole one, or leave streaming out")

    @property
    def description(self) -> str:
        return ":".join(part for part in (self.dataset, self.config, self.split) if part)


@section()
class SacrebleuSet(Corpus):
    """A test set that sacreBLEU knows."""

    sacrebleu: str  # such as wmt14/full

    @property
    def description(self) -> str:
        return f"sacrebleu:{self.sacrebleu}"


def _kind(value: Any) -> str | None:
    """Return the tag of the one kind whose own keys, and no others', are given."""
    kinds = kinds_of(AnyCorpus)
    if not isinstance(value, Mapping):
        return next((tag for tag, kind in kinds.items() if isinstance(value, kind)), None)
    tag = ", ".join(key for key in ", ".join(kinds).split(", ") if key in value)
    return tag if tag in kinds else None


def _without_nulls(value: Any) -> Any:
    """Return a corpus without the keys that say nothing, some of which its kind may not have."""
    if not isinstance(value, Mapping):
        return value
    keys = fields_of(AnyCorpus).keys() & value.keys() - {"weight"}
    nothing = {key for key in keys if value[key] is None or (key == "streaming" and value[key] is False)}
    return {key: entry for key, entry in value.items() if key not in nothing}


AnyCorpus = Annotated[
    Annotated[TextFiles, Tag("src, tgt")]
    | Annotated[Table, Tag("file")]
    | Annotated[HubDataset, Tag("dataset")]
    | Annotated[SacrebleuSet, Tag("sacrebleu")],
    Discriminator(_kind),
    BeforeValidator(_without_nulls),
]


# --- Sections ---------------------------------------------------------------------------------------------------------


@section("data.clean")
class CleanConfig:
    """How text is changed, and which training pairs are removed. Changes are made at translation, too."""

    # What is changed.
    unicode_nfc: Flag = True  # characters are composed (Unicode NFC)
    control_characters: Flag = True  # control and invisible characters become spaces
    html_entities: Flag = True  # &amp; and &#39; become the characters that they mean
    punctuation: Flag = False  # quotes and dashes as Moses writes them; needs mt-train[punctuation]
    white_space: Flag = True  # runs of white space become one space, with none at the ends
    # What is removed.
    max_chars: Positive = 4_000  # characters on either side
    max_length_ratio: LengthRatio | None = 4.0  # of (bytes + 16) of the longer side to those of the shorter; null: any
    max_copied: Fraction | None = 0.9  # words on both sides over those of the longer, from 4 words; null: any
    min_copied: Fraction | None = None  # the same with numbers, for text that must share names; null: any
    max_non_letters: Fraction | None = 0.8  # fraction of digits, punctuation and symbols on a side, from 8; null: any
    max_wrong_script: Fraction | None = 0.5  # fraction of a side's letters in a script not of its language; null: any
    language: Flag = False  # sides in another language, as py3langid sees it; needs mt-train[language]
    numbers: Flag = False  # sides with different numbers
    duplicates: Literal["keep", "exact", "folded"] = "folded"  # pairs that came before; folded: case, punctuation aside
    contamination: Flag = True  # pairs of which a side is in a validation or test set, folded
    contamination_words: Positive = 6  # words that this side has at least

    def __post_init__(self) -> None:
        if self.max_copied is not None and self.min_copied is not None and self.min_copied > self.max_copied:
            problem = f"is {self.min_copied}, above data.clean.max_copied ({self.max_copied}): nothing would be left"
            raise Contradiction("min_copied", problem)


@section("data")
class DataConfig:
    """Parallel text, and which of it is kept."""

    train: Annotated[Entries[AnyCorpus], Field(min_length=1, description="give at least one corpus")]  # joined in order
    valid: AnyCorpus  # measured while training; chooses the best checkpoint
    test: Section[dict[TestName, AnyCorpus]] = field(default_factory=dict)  # named; reported at the end of training
    prepared_dir: Changeable[str] = "data/prepared"  # prepared corpora, one folder for each fingerprint
    max_tokens: MaxTokens = 256  # tokens on either side, end of sentence included; longer training pairs are removed
    clean: Section[CleanConfig] = CleanConfig()

    def __post_init__(self) -> None:
        if "valid" in self.test:
            raise Contradiction("test.valid", "is the name of the validation set", "choose another")
        for key, corpus in self.corpora.items():
            if len(set(corpus.files)) < len(corpus.files):
                raise Contradiction(key.removeprefix("data."), f"src and tgt are the same file, {corpus.files[0]}")

    @property
    def corpora(self) -> dict[str, Corpus]:
        """All corpora by their keys in the config."""
        train = {f"data.train.{i}": corpus for i, corpus in enumerate(self.train)}
        return {**train, "data.valid": self.valid, **{f"data.test.{name}": one for name, one in self.test.items()}}

    @property
    def tags(self) -> tuple[str, ...]:
        """The different tags of all corpora, in their order."""
        return tuple(dict.fromkeys(corpus.tag for corpus in self.corpora.values() if corpus.tag is not None))


@section("tokenizer")
class TokenizerConfig:
    """One SentencePiece model, joint over both languages, with byte fallback."""

    model: str | None = None  # a SentencePiece model to use as it is; the other settings then mean nothing
    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: VocabSize = 32_000  # pieces, the special ones and the 256 bytes included
    character_coverage: Coverage = 0.9999  # fraction of the characters that get a piece; the rest become bytes
    sample_lines: Positive = 10_000_000  # lines of both languages that it is trained on, drawn evenly
    user_symbols: Entries[Symbol] = ()  # pieces that are never cut, such as <name>; tags of corpora need not be named

    def __post_init__(self) -> None:
        if len(set(self.user_symbols)) < len(self.user_symbols):
            raise Contradiction("user_symbols", "has a symbol twice")


@section("model")
class ModelConfig:
    """The Transformer. The defaults are the base model of Vaswani et al. 2017, table 3."""

    d_model: Positive = 512
    n_heads: Positive = 8
    d_ff: Positive = 2_048
    n_encoder_layers: Positive = 6
    n_decoder_layers: Positive = 6
    dropout: Probability = 0.1  # on embeddings and on the output of each sub-layer
    attention_dropout: Probability = 0.0  # on attention weights; above 0 flash attention cannot be used
    layer_dropout: Probability = 0.0  # probability that a layer is skipped in a micro-batch (Fan et al. 2020)
    word_dropout: Probability = 0.0  # probability that a token's embedding is set to zero (Sennrich et al. 2016)
    # post: norm after the residual sum; pre: before the sub-layer (Xiong et al. 2020); deepnorm: after a sum in which x
    # is scaled (Wang et al. 2022)
    norm: Literal["post", "pre", "deepnorm"] = "post"
    norm_kind: Literal["layer", "rms"] = "layer"  # or RMS norm (Zhang and Sennrich 2019)
    # Of the feed-forward networks; geglu and swiglu are gated and have three matrices of d_ff (Shazeer 2020).
    activation: Literal["relu", "gelu", "silu", "relu2", "geglu", "swiglu"] = "relu"
    bias: Flag = True  # of projections and layer norms
    # sinusoidal and learned (Gehring et al. 2017) are added to embeddings; rotary (Su et al. 2021) rotates queries and
    # keys; relative (Raffel et al. 2020) and alibi (Press et al. 2022) are added to scores, without flash attention
    positions: Literal["sinusoidal", "learned", "rotary", "relative", "alibi", "none"] = "sinusoidal"
    n_positions: Positive = 1_024  # of learned positions: tokens of the longest sentence, end of sentence included
    n_kv_heads: Int | None = None  # heads of keys and values; null: n_heads, 1: multi-query (Ainslie et al. 2023)
    qk_norm: Flag = False  # RMS norm of the queries and keys of each head (Henry et al. 2020)
    tied_embeddings: Literal["all", "decoder", "none"] = "all"  # source, target, output: one, two or three matrices
    ffn_sharing: Literal["none", "wide"] = "none"  # wide: one for the encoder, none in the decoder (Pires 2023)
    # xavier: uniform; scaled: output projections of sub-layers over the root of the number of residual sums (Radford et
    # al. 2019); depth_scaled: all matrices of a layer over the root of its depth (Zhang, Titov and Sennrich 2019)
    init: Literal["xavier", "scaled", "depth_scaled"] = "xavier"
    zero_init_out: Flag = False  # output projections of sub-layers start at zero (Zhang, Dauphin and Ma 2019)

    @property
    def shape(self) -> dict[str, object]:
        """The settings that weights are made for, by key; the others matter in training alone."""
        of_training = ("dropout", "attention_dropout", "layer_dropout", "word_dropout", "init", "zero_init_out")
        values = vars(self) | {"n_kv_heads": self.n_kv_heads or self.n_heads}
        values["n_positions"] = self.n_positions if self.positions == "learned" else None
        return {f"model.{key}": value for key, value in values.items() if key not in of_training}

    def __post_init__(self) -> None:
        if self.d_model % self.n_heads or (self.d_model // self.n_heads) % 8:
            problem = f"expected a multiple of 8 × n_heads, got d_model {self.d_model} and n_heads {self.n_heads}"
            raise Contradiction("d_model", problem)
        if self.n_kv_heads is not None and (self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads):
            problem = f"expected a divisor of model.n_heads ({self.n_heads}), got {self.n_kv_heads}"
            raise Contradiction("n_kv_heads", problem)


@section("train")
class TrainConfig:
    """The training procedure."""

    batch_tokens: Positive = 25_000  # target tokens of one update, end of sentence included
    micro_batch_tokens: Changeable[Positive | Literal["auto"]] = "auto"  # target tokens of a forward and backward pass
    max_steps: Changeable[Positive] = 100_000  # updates
    stop_after: Changeable[Duration | None] = None  # wall time such as 30m; then save, average, evaluate as at the end
    schedule: Literal["inverse_sqrt", "cosine", "linear", "warmup_stable_decay", "constant"] = "inverse_sqrt"
    peak_lr: PositiveFloat | None = None  # at the end of the warm-up; null: (d_model * warmup_steps)^-0.5
    warmup_steps: Positive = 4_000  # updates from zero to peak_lr
    decay_share: Fraction = 0.2  # of max_steps, at the end, in which warmup_stable_decay falls
    final_lr_share: Fraction = 0.0  # of peak_lr, where cosine, linear and warmup_stable_decay end
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: Probability = 0.0  # of adamw, on matrices and embeddings; biases and norms are left alone
    adam_beta1: Probability = 0.9
    adam_beta2: Probability = 0.98
    adam_eps: PositiveFloat = 1e-9
    clip_norm: PositiveFloat | None = None  # largest global norm of the gradients; null: no clipping
    label_smoothing: Probability = 0.1  # fraction of the probability spread evenly over the vocabulary
    precision: Changeable[Literal["auto", "bf16", "fp16", "fp32"]] = "auto"  # of matrix products; weights are in fp32
    device: Changeable[Device] = "auto"  # auto, cpu, cuda or cuda:N
    compile: Changeable[Flag | Literal["auto"]] = "auto"  # torch.compile; auto: on CUDA where there is a C compiler
    cuda_graphs: Flag = True  # where it is compiled, launch small updates as captured graphs
    # On CUDA: auto is our own attention, made for short sentences, where it can run; flash is torch's, for long ones
    attention: Literal["auto", "flash"] = "auto"
    tf32: Changeable[Flag] = False  # fp32 products in TF32 on a GPU: faster, 10 bits of mantissa
    activation_checkpointing: Changeable[Flag] = False  # keep inputs of layers, compute the rest again: less memory
    loss_chunks: Changeable[Positive] = 1  # parts of a micro-batch whose logits exist together on a GPU; small on a CPU
    seed: Natural = 1
    init_from: str | None = None  # run or model folder whose weights and tokenizer training starts from (fine-tuning)
    validate_every: Changeable[Positive] = 1_500  # updates
    validation_beam_size: Changeable[BeamSize] = 1  # 1 is greedy search
    checkpoint_every: Changeable[Positive] = 1_500  # updates
    keep_last: Changeable[Positive] = 5  # checkpoints, besides the best ones; at least average_last are kept
    keep_best: Changeable[Positive] = 1  # checkpoints with the best validation scores
    keep_every: Changeable[Int | None] = None  # updates; checkpoints of its multiples are kept for good; null: none
    average_last: Changeable[Natural] = 5  # checkpoints averaged into the final model; 0: the best by best_by
    ema_decay: Decay | None = None  # of a moving average of the weights, which is then what is validated and saved
    best_by: Literal["bleu", "loss"] = "bleu"
    patience: Changeable[Positive | None] = None  # validations without a better score that end training; null: never
    skips_before_rollback: Changeable[Positive] = 5  # updates in a row without finite gradients until it rolls back
    log_every: Changeable[Positive] = 50  # updates

    def __post_init__(self) -> None:
        if self.weight_decay and self.optimizer != "adamw":
            problem = f"is {self.weight_decay}, and {self.optimizer} has none"
            raise Contradiction("weight_decay", problem, "set train.optimizer to adamw")
        if self.keep_every is not None and (self.keep_every < 1 or self.keep_every % self.checkpoint_every):
            problem = f"expected a multiple of train.checkpoint_every ({self.checkpoint_every}), got {self.keep_every}"
            raise Contradiction("keep_every", problem)


@section("decode")
class DecodeConfig:
    """Beam search, or sampling."""

    beam_size: BeamSize = 4  # hypotheses kept open for each sentence; 1 is greedy search
    length_penalty: PenaltyExponent = 0.6  # exponent α of the length penalty; 0: none
    length_penalty_form: Literal["wu", "plain"] = "wu"  # ((5 + n) / 6)^α (Wu et al. 2016), or n^α
    min_length: Natural = 0  # tokens of a translation, end of sentence not counted
    max_length: Positive | None = None  # tokens of a translation, end of sentence included; null: source length + 50
    no_repeat_ngram_size: Natural = 0  # no sequence of N tokens comes twice in a translation; 0: repeat freely
    sample: Flag = False  # draw translations from the model's distribution; beam_size means nothing then
    temperature: Temperature = 1.0  # of sampling: logits are divided by it; below 1 sharper, above 1 flatter
    top_k: Positive | None = None  # of sampling: only among the k most probable tokens
    top_p: TopP | None = None  # of sampling: only among the fewest tokens that hold this probability together
    seed: Int = 1  # of sampling; the same line with the same seed gives the same draw, wherever it is
    batch_tokens: Positive = 4_096  # source tokens with padding, translated together; fewer if beams are wider than 4
    batch_sentences: Positive | None = None  # sentences translated together; null: as many as batch_tokens allows

    def __post_init__(self) -> None:
        if self.max_length is not None and self.min_length >= self.max_length:
            room = f"{self.max_length - 1} tokens and the end of sentence"
            problem = f"is {self.min_length}, and decode.max_length ({self.max_length}) leaves room for {room}"
            raise Contradiction("min_length", problem, others=["decode.max_length"])
        for name, default in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
            value = getattr(self, name)
            if not self.sample and value != default:
                problem = f"is {value}, but is for sampling"
                raise Contradiction(name, problem, "set decode.sample", others=["decode.sample"])

    def changed(self, changes: Mapping[str, Any]) -> DecodeConfig:
        """Return the settings with some of them changed; a beam size makes settings that sample search.

        Raises:
            ConfigError: a setting is unknown, has a wrong value, or contradicts another one.
        """
        if self.sample and "beam_size" in changes:
            changes = {"sample": False, "temperature": 1.0, "top_k": None, "top_p": None, **changes}
        return replace(self, **changes)


class DecodeChanges(TypedDict, total=False):
    """Settings of DecodeConfig as keyword arguments, for type checkers."""

    beam_size: int
    length_penalty: float
    length_penalty_form: Literal["wu", "plain"]
    min_length: int
    max_length: int | None
    no_repeat_ngram_size: int
    sample: bool
    temperature: float
    top_k: int | None
    top_p: float | None
    seed: int
    batch_tokens: int
    batch_sentences: int | None


@section()
class RunConfig:
    """Everything that one run needs to know."""

    name: Changeable[RunName]  # the run folder is runs/NAME
    src_lang: Lang  # code of the source language, such as en
    tgt_lang: Lang  # code of the target language, such as de
    data: Section[DataConfig]
    tokenizer: Section[TokenizerConfig] = TokenizerConfig()
    model: Section[ModelConfig] = ModelConfig()
    train: Section[TrainConfig] = TrainConfig()
    decode: Changeable[Section[DecodeConfig]] = DecodeConfig()

    def __post_init__(self) -> None:
        if self.src_lang == self.tgt_lang:
            raise Contradiction("tgt_lang", f"is the same as src_lang: {self.src_lang}")
        if self.tokenizer.model is not None and self.train.init_from is not None:
            raise Contradiction("tokenizer.model", "train.init_from brings a tokenizer with it", "give one of the two")
        longest, n_positions = self.data.max_tokens, self.model.n_positions
        sizes = {
            "model.n_positions": (n_positions if self.model.positions == "learned" else "auto", "have no positions"),
            "train.batch_tokens": (self.train.batch_tokens, "not fit"),
            "train.micro_batch_tokens": (self.train.micro_batch_tokens, "not fit"),
        }
        for name, (size, trouble) in sizes.items():
            if isinstance(size, int) and size < longest:
                problem = f"is {size}, smaller than data.max_tokens ({longest}): the longest sentence would {trouble}"
                raise Contradiction(name, problem, f"raise {name} or lower data.max_tokens")

    @property
    def symbols(self) -> tuple[str, ...]:
        """What is one piece of the vocabulary and never cut: the tags of corpora, and tokenizer.user_symbols."""
        return tuple(dict.fromkeys((*self.data.tags, *self.tokenizer.user_symbols)))
