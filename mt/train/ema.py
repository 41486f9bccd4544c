"""A moving average of the weights, kept on the device."""

from __future__ import annotations

import torch
from torch import Tensor

from mt.model import Transformer


class MovingAverage:
    """Exponential moving average: average = decay · average + (1 - decay) · weights, after each update.

    The decay starts low and rises to its setting, (1 + step) / (10 + step) at first, so that the weights that training
    began with are soon forgotten.

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: Transformer, decay: float) -> None:
        self._decay = decay
        self._names = [name for name, _ in model.named_parameters()]
        self._weights = [parameter.detach() for parameter in model.parameters()]
        self._averages = [weight.clone() for weight in self._weights]

    @torch.no_grad()
    def follow(self, step: int, was_made: Tensor) -> None:
        """Take in the weights after an update; with `was_made` False on the device nothing changes."""
        share = (1 - min(self._decay, (1 + step) / (10 + step))) * was_made.to(self._averages[0].dtype)
        for average, weight in zip(self._averages, self._weights, strict=True):
            average.lerp_(weight, share)  # in place: it must not run out of memory once the weights have changed

    def state_dict(self) -> dict[str, Tensor]:
        """The averaged weights by name, as the model's own."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from a `state_dict`."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
