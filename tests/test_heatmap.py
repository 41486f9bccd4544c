from __future__ import annotations

import re

import pytest
import torch

from mt.config.settings import DecodeConfig
from mt.decode.translator import OwnBackend, Translator
from mt.errors import ConfigError
from mt.explain.attention import attention_maps, explained_page
from mt.text.tokenizer import EOS_ID, Tokenizer, Tokenizers
from tests.toys import small_model, tiles


@pytest.fixture
def translator(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Translator:
    """Return the translator that every model folder loads in this file."""
    model = small_model(n_encoder_layers=1, vocab_size=tokenizer.vocab_size).for_inference(torch.float32)
    translator = Translator(OwnBackend(model), Tokenizers.of([tokenizer]), DecodeConfig(beam_size=1, max_length=5), 64)
    monkeypatch.setattr(Translator, "load", classmethod(lambda cls, path, **_: translator))
    return translator


def test_maps_are_averages_over_heads_and_their_rows_sum_to_one() -> None:
    model = small_model(n_decoder_layers=3).eval()
    source, target = [5, 6, 7, EOS_ID], [8, 9, EOS_ID]
    maps = attention_maps(model, source, target)
    assert maps.shape == (3, 3, 4)
    torch.testing.assert_close(maps.sum(-1), torch.ones(3, 3))
    with torch.no_grad():
        (weights,) = model.cross_attention_weights(tiles([(source[:-1], target[:-1])]), 1)
    torch.testing.assert_close(maps[1], (weights[0, 0, :3, :4] + weights[0, 1, :3, :4]) / 2)


def test_a_page_has_a_map_for_each_layer_and_a_cell_for_each_pair_of_tokens(translator: Translator) -> None:
    page = explained_page("m", "bar ku", "BAR")
    n_cells = (len(translator.tokenizers.src.encode("bar ku")) + 1) * (len(translator.tokenizers.src.encode("BAR")) + 1)
    assert re.findall("<h2>.*</h2>", page) == ["<h2>Decoder layer 1</h2>", "<h2>Decoder layer 2</h2>"]
    assert page.count("<td ") == 2 * n_cells
    assert "://" not in page  # the page loads nothing from elsewhere


def test_text_is_never_markup_in_the_page(translator: Translator) -> None:
    page = explained_page("m", '<script>bar</script> &amp; "ku"', "<b> BAR")
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;bar&lt;/script&gt; &amp; &#34;ku&#34;" in page


def test_without_a_given_translation_the_model_translates(translator: Translator) -> None:
    (own,) = translator.translate(["bar ku"])
    assert explained_page("m", "bar ku", None) == explained_page("m", "bar ku", own)


@pytest.mark.parametrize(
    ("src", "tgt", "message"),
    [
        (" \t", None, "src is blank. Give a sentence."),
        ("bar", "", "tgt is blank. Give a sentence."),
        ("🙂" * 100, "BAR", "src has 402 tokens, but a map shows at most 200. Give one sentence."),
    ],
)
def test_blank_or_too_long_texts_are_refused(translator: Translator, src: str, tgt: str | None, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        explained_page("m", src, tgt)
    assert str(caught.value) == message
