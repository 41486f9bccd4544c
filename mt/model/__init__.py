"""The encoder-decoder Transformer and its variants; see CONTRIBUTING, "How to add a model variant"."""

from mt.model.transformer import Transformer

__all__ = ["Transformer"]
