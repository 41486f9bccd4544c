"""Every setting of a run: name, type, default, unit. Contradictions are refused where the values are made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Literal

from mt.errors import ConfigError

MAX_BEAM_SIZE = 64
# In brackets, so that no symbol cuts a word; <s>, <unk> and the bytes are SentencePiece's own.
SYMBOL = re.compile(r"<(?!(?:s|pad|unk|0x[0-9A-F]{2})>)[^\W_][\w.:+-]*>")


def _require(condition: bool, key: str, problem: str, others: tuple[str, ...] = ()) -> None:
    if not condition:
        raise ConfigError(key, problem, others=others)


def _require_at_least(key: str, value: float, minimum: float) -> None:
    _require(value >= minimum, key, f"expected at least {minimum}, got {value}")


def parse_duration(text: str) -> float:
    """Seconds in a duration such as `90s`, `30m`, `2h` or `1h30m`.

    Raises:
        ConfigError: the text is no duration.
    """
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m)?(?:(\d+(?:\.\d+)?)s)?", text.strip())
    if match is None or not any(match.groups()):
        raise ConfigError("train.stop_after", f"expected a duration such as 90s, 30m or 1h30m, got {text!r}")
    hours, minutes, seconds = (float(group or 0) for group in match.groups())
    duration = hours * 3600 + minutes * 60 + seconds
    if duration <= 0:
        raise ConfigError("train.stop_after", f"expected a duration above 0, got {text!r}")
    return duration


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """Where parallel text comes from: exactly one of `src` + `tgt`, `file`, `dataset` and `sacrebleu`."""

    src: str | None = None  # text file, one segment a line; may be compressed (.gz, .xz, .zst)
    tgt: str | None = None  # text file, line i translates line i of src
    file: str | None = None  # one file with both sides: .tsv, .jsonl or .parquet
    src_column: int | str | None = None  # of file or dataset: name or 1-based number; null: the first, or the language
    tgt_column: int | str | None = None  # null: the second of two, or the language
    dataset: str | None = None  # hub data set, or a local folder in the hub's layout
    config: str | None = None  # configuration of the hub data set, such as de-en
    split: str | None = None  # split of the hub data set such as train[:10%]; the role's own name by default
    streaming: bool = False  # read the hub data set as it comes, without a copy on the disk
    sacrebleu: str | None = None  # test set that sacreBLEU knows, such as wmt14/full
    weight: float = 1.0  # copies of each pair in a training epoch; the fraction is drawn by chance
    tag: str | None = None  # symbol in front of each source segment, such as <bt> for back-translations

    def __post_init__(self) -> None:
        pair = self.src is not None or self.tgt is not None
        kinds = [pair, self.file is not None, self.dataset is not None, self.sacrebleu is not None]
        if sum(kinds) != 1 or (pair and (self.src is None or self.tgt is None)):
            raise ConfigError("expected exactly one of {src, tgt}, {file}, {dataset} and {sacrebleu}")
        if self.dataset is None and (self.config is not None or self.split is not None or self.streaming):
            raise ConfigError("config, split and streaming go with dataset alone")
        if self.streaming and "[" in (self.split or ""):
            raise ConfigError("split", f"{self.split} is a part of a split", "give a whole one, or leave streaming out")
        self._check_columns()
        if not 0 < self.weight <= 1000:
            raise ConfigError("weight", f"expected a number above 0 and up to 1000, got {self.weight}")
        if self.tag is not None and not SYMBOL.fullmatch(self.tag):
            raise ConfigError("tag", f"expected a symbol such as <bt>, but not <s>, <pad> or <unk>, got {self.tag!r}")

    def _check_columns(self) -> None:
        if (self.src_column is None) != (self.tgt_column is None):
            raise ConfigError("", "src_column and tgt_column go together", "give both or none")
        if self.src_column is None:
            return
        if self.file is None and self.dataset is None:
            raise ConfigError("src_column and tgt_column go with file and dataset alone")
        if self.src_column == self.tgt_column:
            raise ConfigError(f"src_column and tgt_column are the same column, {self.src_column}")
        for name in ("src_column", "tgt_column"):
            column = getattr(self, name)
            if isinstance(column, int) and column < 1:
                raise ConfigError(name, f"columns are counted from 1, got {column}")

    @property
    def description(self) -> str:
        """What the user wrote, in a few words."""
        if self.src is not None:
            return f"{self.src} + {self.tgt}"
        if self.dataset is not None:
            return ":".join(part for part in (self.dataset, self.config, self.split) if part)
        return self.file or f"sacrebleu:{self.sacrebleu}"


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """How text is changed, and which training pairs are removed. Changes are made at translation, too."""

    # What is changed.
    unicode_nfc: bool = True  # characters are composed (Unicode NFC)
    control_characters: bool = True  # control and invisible characters become spaces
    html_entities: bool = True  # &amp; and &#39; become the characters they stand for
    punctuation: bool = False  # quotes and dashes as Moses writes them; needs mt-train[punctuation]
    white_space: bool = True  # runs of white space become one space, with none at the ends
    # What is removed.
    max_chars: int = 4_000  # characters on either side
    max_length_ratio: float | None = 4.0  # (bytes + 16) of the longer side over (bytes + 16) of the shorter; null: any
    max_copied: float | None = 0.9  # words on both sides over those of the longer, from 4 words; null: any
    min_copied: float | None = None  # the same with numbers, for text that must share names; null: any
    max_non_letters: float | None = 0.8  # share of digits, punctuation and symbols on a side, from 8; null: any
    max_wrong_script: float | None = 0.5  # share of a side's letters in a script not of its language; null: any
    language: bool = False  # sides in another language, as py3langid sees it; needs mt-train[language]
    numbers: bool = False  # sides with different numbers
    duplicates: Literal["keep", "exact", "folded"] = "folded"  # pairs that came before; folded: case, punctuation aside
    contamination: bool = True  # pairs of which a side stands in a validation or test set, folded
    contamination_words: int = 6  # words that such a side has at least

    def __post_init__(self) -> None:
        _require_at_least("data.clean.max_chars", self.max_chars, 1)
        _require_at_least("data.clean.contamination_words", self.contamination_words, 1)
        if self.max_length_ratio is not None:
            _require_at_least("data.clean.max_length_ratio", self.max_length_ratio, 1)
        for name in ("max_copied", "min_copied", "max_non_letters", "max_wrong_script"):
            share = getattr(self, name)
            _require(
                share is None or 0 <= share <= 1,
                f"data.clean.{name}",
                f"expected a share from 0 to 1, or null, got {share}",
            )
        if self.max_copied is not None and self.min_copied is not None:
            _require(
                self.min_copied <= self.max_copied,
                "data.clean.min_copied",
                f"is {self.min_copied}, above data.clean.max_copied ({self.max_copied}): nothing would be left",
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Parallel text, and which of it is kept."""

    train: tuple[SourceConfig, ...]  # joined in this order
    valid: SourceConfig  # measured while training; chooses the best checkpoint
    test: dict[str, SourceConfig] = field(default_factory=dict)  # named; each is reported at the end of training
    prepared_dir: str = "data/prepared"  # prepared corpora, one folder for each fingerprint
    max_tokens: int = 256  # tokens on either side, end of sentence included; longer training pairs are removed
    clean: CleanConfig = CleanConfig()

    def __post_init__(self) -> None:
        _require(len(self.train) > 0, "data.train", "is empty: give at least one source of parallel text")
        _require_at_least("data.max_tokens", self.max_tokens, 2)
        sources = {f"data.train.{i}": source for i, source in enumerate(self.train)} | {"data.valid": self.valid}
        for key, source in (sources | {f"data.test.{name}": source for name, source in self.test.items()}).items():
            _require(
                source.src is None or source.src != source.tgt, key, f"src and tgt are the same file, {source.src}"
            )
        for name in self.test:
            _require(
                re.fullmatch(r"[\w.+-]+", name) is not None and not name.startswith("."),
                f"data.test.{name}",
                "the name of a test set may hold letters, digits and . _ + - only",
            )
            _require(name != "valid", "data.test.valid", "is the name of the validation set: choose another")

    @property
    def tags(self) -> tuple[str, ...]:
        """The different tags of all sources, in their order."""
        sources = [*self.train, self.valid, *self.test.values()]
        return tuple(dict.fromkeys(source.tag for source in sources if source.tag is not None))


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """One SentencePiece model, joint over both languages, with byte fallback."""

    model: str | None = None  # a SentencePiece model to use as it is; the other settings then mean nothing
    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: int = 32_000  # pieces, the special ones and the 256 bytes included
    character_coverage: float = 0.9999  # share of the characters that get a piece of their own; the rest become bytes
    sample_lines: int = 10_000_000  # lines, both languages together, that the tokenizer is trained on, drawn evenly
    user_symbols: tuple[str, ...] = ()  # pieces that are never cut, such as <name>; tags of sources need not be named

    def __post_init__(self) -> None:
        _require_at_least("tokenizer.vocab_size", self.vocab_size, 300)
        _require_at_least("tokenizer.sample_lines", self.sample_lines, 1)
        _require(
            0.9 <= self.character_coverage <= 1.0,
            "tokenizer.character_coverage",
            f"expected a share from 0.9 to 1.0, got {self.character_coverage}",
        )
        for symbol in self.user_symbols:
            _require(
                SYMBOL.fullmatch(symbol) is not None,
                "tokenizer.user_symbols",
                f"expected symbols such as <name>, but not <s>, <pad> or <unk>, got {symbol!r}",
            )
        _require(len(set(self.user_symbols)) == len(self.user_symbols), "tokenizer.user_symbols", "has a symbol twice")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The Transformer. The defaults are the base model of Vaswani et al. 2017, table 3."""

    d_model: int = 512
    n_heads: int = 8
    d_ff: int = 2_048
    n_encoder_layers: int = 6
    n_decoder_layers: int = 6
    dropout: float = 0.1  # on embeddings and on the output of each sub-layer
    attention_dropout: float = 0.0  # on attention weights; above 0 flash attention cannot be used
    layer_dropout: float = 0.0  # probability that a layer is skipped in a micro-batch (Fan et al. 2020)
    word_dropout: float = 0.0  # probability that a token's embedding is set to zero (Sennrich et al. 2016)
    # post: norm after the residual sum; pre: before the sub-layer (Xiong et al. 2020); deepnorm: after a sum in which x
    # is scaled (Wang et al. 2022)
    norm: Literal["post", "pre", "deepnorm"] = "post"
    norm_kind: Literal["layer", "rms"] = "layer"  # or RMS norm (Zhang and Sennrich 2019)
    # Of the feed-forward networks; geglu and swiglu are gated and have three matrices of d_ff (Shazeer 2020).
    activation: Literal["relu", "gelu", "silu", "relu2", "geglu", "swiglu"] = "relu"
    bias: bool = True  # of projections and layer norms
    # sinusoidal and learned (Gehring et al. 2017) are added to embeddings; rotary (Su et al. 2021) rotates queries and
    # keys; relative (Raffel et al. 2020) and alibi (Press et al. 2022) are added to scores, without flash attention
    positions: Literal["sinusoidal", "learned", "rotary", "relative", "alibi", "none"] = "sinusoidal"
    n_positions: int = 1_024  # of learned positions: tokens of the longest sentence, end of sentence included
    n_kv_heads: int | None = None  # heads of keys and values; null: n_heads, 1: multi-query (Ainslie et al. 2023)
    qk_norm: bool = False  # RMS norm of the queries and keys of each head (Henry et al. 2020)
    tied_embeddings: Literal["all", "decoder", "none"] = "all"  # source, target, output: one, two or three matrices
    ffn_sharing: Literal["none", "wide"] = "none"  # wide: one for the encoder, none in the decoder (Pires 2023)
    # xavier: uniform; scaled: output projections of sub-layers over the root of the number of residual sums (Radford et
    # al. 2019); depth_scaled: all matrices of a layer over the root of its depth (Zhang, Titov and Sennrich 2019)
    init: Literal["xavier", "scaled", "depth_scaled"] = "xavier"
    zero_init_out: bool = False  # output projections of sub-layers start at zero (Zhang, Dauphin and Ma 2019)

    @property
    def shape(self) -> dict[str, object]:
        """The settings that weights are made for, by key; the others matter in training alone."""
        of_training = ("dropout", "attention_dropout", "layer_dropout", "word_dropout", "init", "zero_init_out")
        values = vars(self) | {"n_kv_heads": self.n_kv_heads or self.n_heads}
        values["n_positions"] = self.n_positions if self.positions == "learned" else None
        return {f"model.{key}": value for key, value in values.items() if key not in of_training}

    def __post_init__(self) -> None:
        for name in ("d_model", "n_heads", "d_ff", "n_encoder_layers", "n_decoder_layers", "n_positions"):
            _require_at_least(f"model.{name}", getattr(self, name), 1)
        _require(
            self.d_model % self.n_heads == 0 and (self.d_model // self.n_heads) % 8 == 0,
            "model.d_model",
            f"expected a multiple of 8 × n_heads, got d_model {self.d_model} and n_heads {self.n_heads}",
        )
        for name in ("dropout", "attention_dropout", "layer_dropout", "word_dropout"):
            _require(0 <= getattr(self, name) < 1, f"model.{name}", f"expected 0 ≤ p < 1, got {getattr(self, name)}")
        if self.n_kv_heads is not None:
            _require(
                self.n_kv_heads >= 1 and self.n_heads % self.n_kv_heads == 0,
                "model.n_kv_heads",
                f"expected a divisor of model.n_heads ({self.n_heads}), got {self.n_kv_heads}",
            )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The training procedure."""

    batch_tokens: int = 25_000  # target tokens of one update, end of sentence included
    micro_batch_tokens: int | Literal["auto"] = "auto"  # target tokens of one forward and backward pass
    max_steps: int = 100_000  # updates
    stop_after: str | None = None  # wall time of training such as 30m; then save, average and evaluate as at the end
    schedule: Literal["inverse_sqrt", "cosine", "linear", "warmup_stable_decay", "constant"] = "inverse_sqrt"
    peak_lr: float | None = None  # at the end of the warm-up; null: (d_model * warmup_steps)^-0.5
    warmup_steps: int = 4_000  # updates from zero to peak_lr
    decay_share: float = 0.2  # of max_steps, at the end, in which warmup_stable_decay falls
    final_lr_share: float = 0.0  # of peak_lr, where cosine, linear and warmup_stable_decay end
    optimizer: Literal["adam", "adamw"] = "adam"
    weight_decay: float = 0.0  # of adamw, on matrices and embeddings; biases and norms are left alone
    adam_beta1: float = 0.9
    adam_beta2: float = 0.98
    adam_eps: float = 1e-9
    clip_norm: float | None = None  # largest global norm of the gradients; null: no clipping
    label_smoothing: float = 0.1  # share of the probability spread evenly over the vocabulary
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"  # of matrix products; weights are kept in fp32
    device: str = "auto"  # auto, cpu, cuda or cuda:N
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA where a host C compiler is found
    cuda_graphs: bool = True  # where it is compiled, launch small updates as captured graphs
    # On CUDA: auto is our own attention, made for short sentences, where it can run; flash is torch's, for long ones
    attention: Literal["auto", "flash"] = "auto"
    tf32: bool = False  # fp32 products in TF32 on a GPU: faster, 10 bits of mantissa
    activation_checkpointing: bool = False  # keep the inputs of layers alone and compute the rest again: less memory
    loss_chunks: int = 1  # parts of a slice whose logits exist at one time on a GPU; on a CPU they are always small
    seed: int = 1
    init_from: str | None = None  # run or model folder whose weights and tokenizer training starts from (fine-tuning)
    validate_every: int = 1_500  # updates
    validation_beam_size: int = 1  # 1 is greedy search
    checkpoint_every: int = 1_500  # updates
    keep_last: int = 5  # checkpoints, besides the best ones; at least average_last are kept
    keep_best: int = 1  # checkpoints with the best validation scores
    keep_every: int | None = None  # updates; checkpoints of its multiples are kept for good; null: none
    average_last: int = 5  # checkpoints averaged into the final model; 0: the best by best_by
    ema_decay: float | None = None  # of a moving average of the weights, which is then what is validated and saved
    best_by: Literal["bleu", "loss"] = "bleu"
    patience: int | None = None  # validations without a better score after which training ends; null: never
    skips_before_rollback: int = 5  # updates in a row without finite gradients before training goes back
    log_every: int = 50  # updates

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_steps", "warmup_steps", "validate_every", "validation_beam_size"):
            _require_at_least(f"train.{name}", getattr(self, name), 1)
        _require(
            self.validation_beam_size <= MAX_BEAM_SIZE,
            "train.validation_beam_size",
            f"expected 1 to {MAX_BEAM_SIZE}, got {self.validation_beam_size}",
        )
        for name in ("checkpoint_every", "keep_last", "keep_best", "log_every", "loss_chunks", "skips_before_rollback"):
            _require_at_least(f"train.{name}", getattr(self, name), 1)
        for name in ("average_last", "seed"):
            _require_at_least(f"train.{name}", getattr(self, name), 0)
        if self.micro_batch_tokens != "auto":
            _require_at_least("train.micro_batch_tokens", self.micro_batch_tokens, 1)
        for name in ("peak_lr", "clip_norm"):
            value = getattr(self, name)
            if value is not None:
                _require(0 < value < math.inf, f"train.{name}", f"expected a number above 0 or null, got {value}")
        _require(
            self.weight_decay == 0 or self.optimizer == "adamw",
            "train.weight_decay",
            f"is {self.weight_decay}, and {self.optimizer} has none: set train.optimizer to adamw",
        )
        for name in ("decay_share", "final_lr_share"):
            _require(0 <= getattr(self, name) <= 1, f"train.{name}", f"expected 0 to 1, got {getattr(self, name)}")
        for name in ("adam_beta1", "adam_beta2", "label_smoothing", "weight_decay"):
            _require(0 <= getattr(self, name) < 1, f"train.{name}", f"expected 0 ≤ x < 1, got {getattr(self, name)}")
        _require(self.adam_eps > 0, "train.adam_eps", f"expected a number above 0, got {self.adam_eps}")
        _require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            "train.device",
            f"expected auto, cpu, cuda or cuda:N, got {self.device!r}",
        )
        if self.keep_every is not None:
            _require(
                self.keep_every >= 1 and self.keep_every % self.checkpoint_every == 0,
                "train.keep_every",
                f"expected a multiple of train.checkpoint_every ({self.checkpoint_every}), got {self.keep_every}",
            )
        if self.ema_decay is not None:
            _require(0 < self.ema_decay < 1, "train.ema_decay", f"expected 0 < x < 1 or null, got {self.ema_decay}")
        if self.patience is not None:
            _require_at_least("train.patience", self.patience, 1)
        if self.stop_after is not None:
            parse_duration(self.stop_after)


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """Beam search, or sampling."""

    beam_size: int = 4  # hypotheses kept open for each sentence; 1 is greedy search
    length_penalty: float = 0.6  # exponent α of the length penalty; 0: none
    length_penalty_form: Literal["wu", "plain"] = "wu"  # ((5 + n) / 6)^α (Wu et al. 2016), or n^α
    min_length: int = 0  # tokens of a translation, end of sentence not counted
    max_length: int | None = None  # tokens of a translation, end of sentence included; null: source length + 50
    no_repeat_ngram_size: int = 0  # no sequence of so many tokens comes twice in a translation; 0: repeat freely
    sample: bool = False  # draw translations from the model's distribution; beam_size means nothing then
    temperature: float = 1.0  # of sampling: logits are divided by it; below 1 sharper, above 1 flatter
    top_k: int | None = None  # of sampling: only among the k most probable tokens
    top_p: float | None = None  # of sampling: only among the fewest tokens that hold this probability together
    seed: int = 1  # of sampling; the same line with the same seed gives the same draw, wherever it stands
    batch_tokens: int = 4_096  # source tokens, padding included, translated together; fewer with beams wider than 4
    batch_sentences: int | None = None  # sentences translated together at most; null: as many as batch_tokens allows

    def __post_init__(self) -> None:
        _require(
            1 <= self.beam_size <= MAX_BEAM_SIZE,
            "decode.beam_size",
            f"expected 1 to {MAX_BEAM_SIZE}, got {self.beam_size}",
        )
        _require(
            0 <= self.length_penalty <= 10,
            "decode.length_penalty",
            f"expected 0 to 10, got {self.length_penalty}",
        )
        _require_at_least("decode.min_length", self.min_length, 0)
        if self.max_length is not None:
            _require_at_least("decode.max_length", self.max_length, 1)
            _require(
                self.min_length < self.max_length,
                "decode.min_length",
                f"is {self.min_length}, and decode.max_length ({self.max_length}) leaves room for "
                f"{self.max_length - 1} tokens and the end of sentence",
                ("decode.max_length",),
            )
        _require_at_least("decode.no_repeat_ngram_size", self.no_repeat_ngram_size, 0)
        self._check_sampling()
        _require_at_least("decode.batch_tokens", self.batch_tokens, 1)
        if self.batch_sentences is not None:
            _require_at_least("decode.batch_sentences", self.batch_sentences, 1)

    def _check_sampling(self) -> None:
        _require(0.01 <= self.temperature <= 100, "decode.temperature", f"expected 0.01 to 100, got {self.temperature}")
        if self.top_k is not None:
            _require_at_least("decode.top_k", self.top_k, 1)
        if self.top_p is not None:
            _require(0 < self.top_p <= 1, "decode.top_p", f"expected a number above 0 and up to 1, got {self.top_p}")
        if not self.sample:
            for name, default in (("temperature", 1.0), ("top_k", None), ("top_p", None)):
                value = getattr(self, name)
                problem = f"is {value}, but is for sampling: set decode.sample"
                _require(value == default, f"decode.{name}", problem, ("decode.sample",))


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that one run needs to know."""

    name: str  # the run folder is runs/NAME
    src_lang: str  # code of the source language, such as en
    tgt_lang: str  # code of the target language, such as de
    data: DataConfig
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"[\w.+-]+", self.name) is not None and not self.name.startswith("."),
            "name",
            f"may hold letters, digits and . _ + - only (it names the run folder), got {self.name!r}",
        )
        for key in ("src_lang", "tgt_lang"):
            _require(getattr(self, key) != "", key, "is empty: give a language code such as en")
        _require(self.src_lang != self.tgt_lang, "tgt_lang", f"is the same as src_lang: {self.src_lang}")
        _require(
            self.tokenizer.model is None or self.train.init_from is None,
            "tokenizer.model",
            "train.init_from brings a tokenizer with it: give one of the two",
        )
        smallest_name, smallest = "train.batch_tokens", self.train.batch_tokens
        if self.train.micro_batch_tokens != "auto" and self.train.micro_batch_tokens < smallest:
            smallest_name, smallest = "train.micro_batch_tokens", self.train.micro_batch_tokens
        _require(
            self.model.positions != "learned" or self.model.n_positions >= self.data.max_tokens,
            "model.n_positions",
            f"is {self.model.n_positions}, smaller than data.max_tokens ({self.data.max_tokens}): the longest sentence "
            "would have no positions; raise model.n_positions or lower data.max_tokens",
        )
        _require(
            smallest >= self.data.max_tokens,
            smallest_name,
            f"is {smallest}, smaller than data.max_tokens ({self.data.max_tokens}): "
            "the longest sentence would not fit; raise the one or lower the other",
        )

    @property
    def symbols(self) -> tuple[str, ...]:
        """What is one piece of the vocabulary and never cut: the tags of sources, and tokenizer.user_symbols."""
        return tuple(dict.fromkeys((*self.data.tags, *self.tokenizer.user_symbols)))
