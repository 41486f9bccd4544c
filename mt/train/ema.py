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
        self._averages = [parameter.detach().clone() for parameter in model.parameters()]
        # In a few launches for all weights, without further memory: plain gradient descent, whose `maximize` and
        # weight decay of 1 make each step average += lr · (gradient - average), with the weights in place of gradients.
        self._descent = torch.optim.SGD(self._averages, lr=0.0, weight_decay=1.0, maximize=True, fused=True)
        for average, parameter in zip(self._averages, model.parameters(), strict=True):
            average.grad = parameter.detach()

    def follow(self, step: int, was_skipped: Tensor) -> None:
        """Take in the weights after an update; where `was_skipped` is 1.0 on the device nothing changes."""
        self._descent.param_groups[0]["lr"] = 1 - min(self._decay, (1 + step) / (10 + step))
        # torch reads it from the object, as it does from Adam.
        self._descent.found_inf = was_skipped  # type: ignore[attr-defined]
        self._descent.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights by name, as the model does its own."""
        return dict(zip(self._names, self._averages, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        for name, average in zip(self._names, self._averages, strict=True):
            average.copy_(state[name])
