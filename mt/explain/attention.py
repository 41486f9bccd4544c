"""An attention page: the cross-attention weights of each decoder layer, as a heat map of tokens.

S source tokens, T target tokens, both including EOS; L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from mt.data.batch import packed_pairs
from mt.decode.translator import Translator
from mt.errors import ConfigError
from mt.model import Transformer
from mt.report.page import page
from mt.text.tokenizer import EOS_ID, Tokenizer

LONGEST_SHOWN = 200  # tokens per side; larger maps are unreadable


def explained_page(
    model: str | Path,
    src: str,
    tgt: str | None,
    device: str = "auto",
    precision: str = "auto",
    src_lang: str | None = None,
    tgt_lang: str | None = None,
) -> str:
    """Return an HTML page with the attention maps of a sentence and its translation.

    Args:
        model: a run folder, a checkpoint or a model folder.
        tgt: a given translation; None: the model translates.
        src_lang, tgt_lang: as in `Translator.load`.
    Raises:
        CheckpointError: the model is missing, incomplete or of another version.
        ConfigError: a text is blank or too long; the device or precision is not available.
    """
    translator = Translator.load(model, device=device, precision=precision, src_lang=src_lang, tgt_lang=tgt_lang)
    translator.require_direction()
    normalisers, (src_tokenizer, tgt_tokenizer) = translator.normalisers, translator.tokenizers
    longest = min(LONGEST_SHOWN, translator.model.positions.n_positions or LONGEST_SHOWN)

    def ids_of(key: str, text: str, tokenizer: Tokenizer, first: Sequence[int] = ()) -> list[int]:
        ids = [*first, *tokenizer.encode(text), EOS_ID]
        if len(ids) > longest:
            raise ConfigError(key, f"has {len(ids):,} tokens, but a map shows at most {longest}", "give one sentence")
        return ids

    src, tgt = normalisers.src(src), None if tgt is None else normalisers.tgt(tgt)
    for key, text in (("src", src), ("tgt", tgt)):
        if text == "":
            raise ConfigError(key, "is blank", "give a sentence")
    source = ids_of("src", src, src_tokenizer, translator.first_ids)
    if tgt is None:
        (tgt,) = translator.translate([src])
    target = ids_of("tgt", tgt, tgt_tokenizer)
    return page(
        "attention.html.j2",
        title=src,
        tgt=tgt,
        src_pieces=src_tokenizer.pieces(source),
        tgt_pieces=tgt_tokenizer.pieces(target),
        maps=attention_maps(translator.model, source, target).tolist(),
        n_heads=translator.model.config.n_heads,
    )


@torch.inference_mode()
def attention_maps(model: Transformer, source: Sequence[int], target: Sequence[int]) -> Tensor:
    """Return [L, T, S] on the CPU: how much the prediction of each target token attends to each source token.

    Args:
        source: ids, ending with EOS.
        target: ids, ending with EOS.
    """
    ((_, batch),) = packed_pairs([source], [target], 1, model.dtype)
    batch = batch.to(model.embedding.weight.device)
    layers = []
    for layer in range(len(model.decoder)):
        (weights,) = model.cross_attention_weights(batch, layer)  # [1, H, W, W]: one pair, one tile
        layers.append(weights[0, :, : len(target), : len(source)].mean(0))
    return torch.stack(layers).cpu()
