"""The encoder-decoder Transformer. Training uses packed batches and decoding a cache, with the same layers and weights.

S source rows, T target rows (packed, see data/batch.py), D d_model, H heads, G heads of keys and values, E = D / H,
V vocabulary of the target; in decoding B sentences, K beams, k of them open, W source width.

Source: Vaswani et al. 2017. The classes of variants name their sources.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from mt.config.settings import ModelConfig, VocabSizes, of_both_sides
from mt.data.batch import Layout, PackedBatch, SourceBatch
from mt.model import layers
from mt.model.context import Cache, Cached, Packed, PackedTarget, Recorded, rows_of
from mt.model.cpu import inference_kernels
from mt.model.kernels import Kernels, Layer, separate
from mt.model.positions import POSITIONS, Positions

VOCAB_MULTIPLE = 128  # the number of rows of an embedding is a multiple of it, for fast matrix products


def _n_rows(vocab_size: int) -> int:
    return -(-vocab_size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


class ModelOutput(NamedTuple):
    """The output of the model for a batch."""

    hidden: Tensor  # [T, D] last states of the decoder, the input of `logits` and of the loss
    losses: list[Tensor]  # auxiliary losses of layers: scalars in nats, summed over tokens


class Transformer(nn.Module):
    """The model. It depends neither on text nor on a device. Its outputs for rows of padding have no meaning.

    It computes with the reference kernels until `use` replaces them.

    Args:
        config: shape and variants.
        vocab_size: V, shared by both languages, or the sizes of source's and target's vocabulary, which need separate
            embeddings. An embedding has more rows, see VOCAB_MULTIPLE.
        pad_id: id of padding.
        dtype: type of matrix products and of the residual stream; parameters are float32.
        activation_checkpointing: keep only the inputs of layers, and recompute the rest in the backward pass.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        vocab_size: VocabSizes,
        pad_id: int,
        dtype: torch.dtype = torch.float32,
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.config, self.pad_id, self.dtype = config, pad_id, dtype
        self.vocab_sizes = of_both_sides(vocab_size)
        self.vocab_size = self.vocab_sizes[1]
        assert config.tied_embeddings != "all" or len(set(self.vocab_sizes)) == 1, "source and target share embeddings"
        self.embedding = self._embedding(self.vocab_size)
        encoder = [layers.LayerSpec(config, False, i) for i in range(config.n_encoder_layers)]
        decoder = [layers.LayerSpec(config, True, i) for i in range(config.n_decoder_layers)]
        self.wide_network = layers.FeedForward(encoder[0]) if config.ffn_sharing == "wide" else None
        stack = layers.DroppingStack if config.layer_dropout else layers.Stack
        settings = activation_checkpointing, config.layer_dropout
        self.encoder = stack((layers.EncoderLayer(spec, self.wide_network) for spec in encoder), *settings)
        self.decoder = stack(map(layers.DecoderLayer, decoder), *settings)
        # Pre-norm leaves the last residual sum of a stack without a norm.
        final = (lambda: layers.norm_of(config)) if config.norm == "pre" else nn.Identity
        self.encoder_norm, self.decoder_norm = final(), final()
        self.positions: Positions = POSITIONS[config.positions](config)
        self.src_embedding = None if config.tied_embeddings == "all" else self._embedding(self.vocab_sizes[0])
        self.output_embedding = self._embedding(self.vocab_size) if config.tied_embeddings == "none" else None
        # For source, target and output. A tuple, so that tied embeddings are registered once.
        self.embeddings = self.src_embedding or self.embedding, self.embedding, self.output_embedding or self.embedding
        # Drops the embeddings of whole tokens. Source: Sennrich, Haddow and Birch 2016 (WMT), section 2.
        self.drop_words = nn.Dropout1d(config.word_dropout) if config.word_dropout else nn.Identity()
        self.dropout, self.attention_dropout = config.dropout, config.attention_dropout
        self.kernels = Kernels()
        self.reset_parameters()

    def _embedding(self, vocab_size: int) -> nn.Embedding:
        return nn.Embedding(_n_rows(vocab_size), self.config.d_model)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise linear layers, and embeddings with standard deviation D^-0.5, so that scaling by D^0.5 gives 1."""
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=self.config.d_model**-0.5)
            elif isinstance(module, layers.Linear):
                module.initialise()

    def use(self, kernels: Kernels) -> Transformer:
        """Compute with these kernels from now on, and return the model."""
        self.kernels = kernels
        for module in self.modules():
            if isinstance(module, Layer):
                module.kernels = kernels
            if isinstance(module, layers.Linear) or module is self.embeddings[2]:
                module.packed = kernels.packed(module)
        return self

    @property
    def output_weight(self) -> Tensor:
        """[V, D]: the output layer without the rows that pad the vocabulary; by default tied to the embedding."""
        weight = self.embeddings[2].weight
        # Slice only if necessary: the gradient of a slice is a copy.
        return weight if len(weight) == self.vocab_size else weight[: self.vocab_size]

    @property
    def n_pieces(self) -> dict[nn.Embedding, int]:
        """Each embedding → the number of its rows that are not padding."""
        return dict(zip(self.embeddings, (*self.vocab_sizes, self.vocab_size), strict=True))

    @property
    def n_parameters(self) -> int:
        """Number of learned parameters: all but the rows that pad the vocabulary."""
        n_padding = sum(table.num_embeddings - n for table, n in self.n_pieces.items())
        return sum(parameter.numel() for parameter in self.parameters()) - n_padding * self.config.d_model

    def training_flops(self, n_src_tokens: int, n_tgt_tokens: int) -> int:
        """Return the floating-point operations of a forward and a backward pass over real tokens, by convention.

        For each token, each weight of a matrix is multiplied and added three times: for the output, and for the
        gradients of input and weight. The embedding counts only as the output layer. Products of queries with keys and
        of attention weights with values are not counted, nor are operations other than matrix products.

        Source of the convention: Kaplan et al. 2020, section 2.1.
        """

        def n_weights(*parts: nn.Module) -> int:
            linear = (module for part in parts for module in part.modules() if isinstance(module, layers.Linear))
            return sum(module.weight.numel() for module in linear)

        networks = [] if self.wide_network is None else [self.wide_network] * len(self.encoder)
        # Keys and values of cross-attention are projections of source rows.
        memory_weights = n_weights(*(attention.kv for attention in self._cross_attentions))
        src_weights = n_weights(self.encoder, *networks) + memory_weights
        tgt_weights = n_weights(self.decoder) - memory_weights + self.vocab_size * self.config.d_model
        return 6 * (n_src_tokens * src_weights + n_tgt_tokens * tgt_weights)

    def forward(self, batch: PackedBatch) -> ModelOutput:
        """Return the last states of the decoder for all target positions, and all auxiliary losses."""
        x, context, losses = self._decoder_input(batch)
        x, more = self.decoder(x, repeat(context, len(self.decoder)))
        return ModelOutput(self.decoder_norm(x), losses + more)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return only the last states of the decoder [T, D]."""
        output: ModelOutput = self(batch)
        return output.hidden

    def cross_attention_weights(self, batch: PackedBatch, layer: int) -> list[Tensor]:
        """Return how much each target row of a batch of tiles attends to each source row, in one layer of the decoder.

        Args:
            layer: counted from 0.
        Returns:
            [n, H, W, W] float32 for each group of tiles in the batch's cross layout, queries before keys.
        """
        x, context, _ = self._decoder_input(batch)
        recorded = Recorded(**vars(context))
        self.decoder(x, [*repeat(context, layer), recorded])
        return recorded.weights

    def encode(self, ids: Tensor, positions: Tensor, layout: Layout, max_positions: int) -> tuple[Tensor, list[Tensor]]:
        """Return the encoder's output [S, D] of ids and positions [S] below max_positions, and auxiliary losses."""
        x = self._embed(0, ids, positions, max_positions)
        rows = rows_of(layout, self.attention_dropout * self.training, self.positions)
        context = Packed(rows, self.positions.angles(positions, max_positions))
        x, losses = self.encoder(x, repeat(context, len(self.encoder)))
        return self.encoder_norm(x), losses

    def _decoder_input(self, batch: PackedBatch) -> tuple[Tensor, PackedTarget, list[Tensor]]:
        """Run the encoder; return the input and the context of the decoder, and the auxiliary losses of the encoder."""
        memory, losses = self.encode(batch.src_ids, batch.src_positions, batch.encoder_layout, batch.max_positions)
        x = self._embed(1, batch.tgt_inputs, batch.tgt_positions, batch.max_positions)  # [T, D]
        p = self.attention_dropout * self.training
        self_rows = rows_of(batch.decoder_layout, p, self.positions, is_causal=True)
        angles = self.positions.angles(batch.tgt_positions, batch.max_positions)
        return x, PackedTarget(self_rows, angles, rows_of(batch.cross_layout, p), memory), losses

    def logits(self, hidden: Tensor) -> Tensor:
        """Return [..., V] in the model's dtype, from hidden [..., D]."""
        return functional.linear(hidden, self.output_weight.to(hidden.dtype))

    def init_cache(self, sources: SourceBatch, n_beams: int) -> Cache:
        """Encode the sentences, and return an empty cache for their translations."""
        memory, _ = self.encode(sources.ids, sources.positions, sources.layout, sources.width)  # [B W, D]
        sides: tuple[list[Tensor], ...] = [], []
        for attention in self._cross_attentions:
            for side, part in zip(sides, separate(attention.keys_and_values(memory)), strict=True):
                side.append(part.view(len(sources.lengths), sources.width, *part.shape[1:]).transpose(1, 2))
        keys, values = (torch.stack(side).contiguous() for side in sides)  # [L, B, G, W, E]
        mask = sources.layout.groups[0].bias if sources.has_padding else None
        return Cache.empty(keys, values, mask, n_beams)

    def decode_step(self, tokens: Tensor, cache: Cache) -> Tensor:
        """Return logits of the tokens after the last tokens [B k] of k open beams; on CUDA in float32.

        The logits are [B k, rows of the embedding]. The rows are padded to whole blocks for `best_tokens`, with -inf.
        `Cache.select_beams` ends the step.
        """
        cache.begin_step(len(tokens) // len(cache.ancestors), self.positions)
        x = self._embed(1, tokens, cache.position, cache.capacity)  # [B k, D]
        x, _ = self.decoder(x, [Cached(cache, i) for i in range(len(self.decoder))])
        logits = self.kernels.logits(self.decoder_norm(x), self.embeddings[2])
        logits[:, self.vocab_size :] = float("-inf")
        return logits

    @property
    def _cross_attentions(self) -> list[layers.CrossAttention]:
        return [cast(layers.DecoderLayer, layer).cross_attention for layer in self.decoder]

    def for_inference(self, dtype: torch.dtype, weights: Mapping[str, Tensor] | None = None) -> Transformer:
        """Return a copy that cannot be trained. All of it has one type, so that no step converts weights.

        Args:
            weights: weights of the copy; None: those of this model.
        """
        packed = {id(module.packed): None for module in self.modules() if isinstance(module, layers.Linear)}
        model = copy.deepcopy(self, {**packed, id(self.kernels): self.kernels})  # kernels are not copied
        if weights is not None:
            model.load_state_dict(weights)
        model = model.to(dtype)
        model.dtype = dtype
        model.requires_grad_(False).eval()
        model.encoder.run = model.decoder.run = nn.Module.__call__
        return model.use(inference_kernels(model.embedding.weight.device, dtype))

    def _embed(self, side: int, ids: Tensor, positions: Tensor, max_positions: int) -> Tensor:
        rows = self.drop_words(self.embeddings[side](ids))
        return self.positions(rows, positions, max_positions, self.dtype, self.dropout)


def grown_weights(
    weights: Mapping[str, Tensor], vocab_size: VocabSizes, spelled: Sequence[Sequence[Sequence[int]]]
) -> dict[str, Tensor]:
    """Return the weights of a model with rows for new pieces; all other weights and rows are unchanged.

    The row of a new piece is the mean of the rows of the old pieces that spell it, and of all rows if there are none.

    Args:
        weights: all parameters by name.
        vocab_size: of these weights, without new pieces.
        spelled: for the source's and the target's vocabulary, the ids of the old pieces that spell each new piece.
    """
    sides = {"src_embedding.weight": 0, "embedding.weight": 1, "output_embedding.weight": 1}
    grown = dict(weights)
    for name in sides.keys() & weights.keys():
        n_old, new = of_both_sides(vocab_size)[sides[name]], spelled[sides[name]]
        old = weights[name][:n_old]  # [V, D]
        rows = [old[list(ids)].mean(0) if ids else old.mean(0) for ids in new]
        grown[name] = old.new_zeros(_n_rows(n_old + len(new)), old.shape[1])
        grown[name][: n_old + len(new)] = torch.cat([old, *(row[None] for row in rows)])
    return grown
