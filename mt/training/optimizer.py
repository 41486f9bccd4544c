"""The learning rate schedules, Adam and Muon with clipping and loss scaling, and a moving average of the weights."""

from __future__ import annotations

import math
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from mt.config.settings import TrainConfig
from mt.model import Transformer
from mt.model.layers import Linear
from mt.training.muon import Muon

# For fp16: the scale starts here, halves at an overflow, and doubles after GROWTH_INTERVAL good updates in a row.
FIRST_LOSS_SCALE = 2.0**15
GROWTH_INTERVAL = 2_000


def peak_lr(train: TrainConfig, d_model: int) -> float:
    """Return the highest learning rate."""
    return 1 / math.sqrt(d_model * train.warmup_steps) if train.peak_lr is None else train.peak_lr


def learning_rate(step: int, train: TrainConfig, d_model: int, start: int = 0) -> float:
    """Return the learning rate of update `step`, counted from 1: linear up to `warmup_steps`, then by `schedule`.

    After a restart (`train.restart_schedule`), steps and max_steps count from `start`, the updates done before.

    - inverse_sqrt: in proportion to step^-0.5; with the default peak (d_model · warmup_steps)^-0.5 this is the paper's
      d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5) (Vaswani et al. 2017, section 5.3).
    - cosine: half a cosine down to final_lr_share at max_steps (Loshchilov and Hutter 2017, without restarts).
    - linear: linear down to final_lr_share at max_steps.
    - warmup_stable_decay: constant, then linear over the last decay_share of max_steps (Hu et al. 2024).
    - constant: the peak.
    """
    step, max_steps = step - start, train.max_steps - start
    assert step >= 1
    peak = peak_lr(train, d_model)
    if step <= train.warmup_steps:
        return peak * step / train.warmup_steps
    if train.schedule == "inverse_sqrt":
        return peak * math.sqrt(train.warmup_steps / step)
    if train.schedule == "constant":
        return peak
    decay_starts_at = train.warmup_steps
    if train.schedule == "warmup_stable_decay":
        decay_starts_at = max(decay_starts_at, round(max_steps * (1 - train.decay_share)))
    n_decay_steps = max(max_steps - decay_starts_at, 1)
    progress = min(max(step - decay_starts_at, 0) / n_decay_steps, 1.0)
    share = (1 + math.cos(math.pi * progress)) / 2 if train.schedule == "cosine" else 1 - progress
    return peak * (train.final_lr_share + (1 - train.final_lr_share) * share)


def matrices_of(model: Transformer) -> dict[Tensor, list[int]]:
    """Return the matrices of the layers, each with the rows of the projections in it."""
    return {layer.weight: layer.parts for layer in model.modules() if isinstance(layer, Linear)}


class Optimizer:
    """Adam on summed gradients, or Muon for the matrices of layers; the host and the device are not synchronised.

    torch's fused Adam gets clipping and the loss scale as `grad_scale`, and a NaN or infinite gradient norm as
    `found_inf`, with which parameters, moments and step count do not change.

    Source: Kingma and Ba 2015; the settings are Vaswani et al. 2017, section 5.3. AdamW is Loshchilov and Hutter 2019.
    """

    def __init__(self, model: Transformer, train: TrainConfig, dtype: torch.dtype) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        device = self.parameters[0].device
        matrices = matrices_of(model)
        others = [parameter for parameter in self.parameters if parameter not in matrices]
        # Only the matrices of layers decay: it does not help to pull biases, norms and embeddings towards zero.
        groups = [{"params": others, "weight_decay": 0.0}]
        self._muon = None
        if train.optimizer == "muon":
            # A CPU that does not train in bf16 has no fast products in it.
            products = torch.bfloat16 if device.type == "cuda" else dtype
            self._muon = Muon(matrices.items(), train.muon_momentum, train.weight_decay, products)
        else:
            groups.insert(0, {"params": [*matrices], "weight_decay": train.weight_decay})
        adam = torch.optim.AdamW if train.optimizer == "adamw" else torch.optim.Adam
        self._adam = adam(groups, lr=0.0, betas=(train.adam_beta1, train.adam_beta2), eps=train.adam_eps, fused=True)
        # Allocated now, so that no update runs out of memory half-way, and the memory in use is known from the start.
        for parameter in chain.from_iterable(group["params"] for group in self._adam.param_groups):
            self._adam.state[parameter] = {
                "step": torch.zeros((), dtype=torch.float32, device=device),
                "exp_avg": torch.zeros_like(parameter),
                "exp_avg_sq": torch.zeros_like(parameter),
            }
        self._clip_norm = train.clip_norm
        self.scales_loss = dtype == torch.float16
        self.loss_scale = torch.full((), FIRST_LOSS_SCALE if self.scales_loss else 1.0, device=device)
        self._good_updates = torch.zeros((), dtype=torch.int64, device=device)
        self.was_skipped = torch.zeros((), device=device)  # 1.0 if the last update was skipped

    def step(self, lr: float) -> Tensor:
        """Update the parameters from their gradients, then drop the gradients.

        Returns:
            The gradient norm before clipping, a scalar on the device; NaN or infinite if the update was skipped.
        """
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients) / self.loss_scale
        not_finite = ~torch.isfinite(norm)
        excess = torch.ones_like(norm) if self._clip_norm is None else (norm / self._clip_norm).clamp(min=1.0)
        divisor = torch.where(not_finite, torch.ones_like(norm), self.loss_scale * excess)
        # torch reads both from the object; GradScaler sets them the same way.
        self._adam.grad_scale = divisor  # type: ignore[attr-defined]
        self._adam.found_inf = self.was_skipped = not_finite.float()  # type: ignore[attr-defined]
        for group in self._adam.param_groups:
            group["lr"] = lr
        if self.scales_loss:
            self._adapt_loss_scale(not_finite)
        if self._muon is not None:
            self._muon.compute(divisor, not_finite)
        self._adam.step()  # the last operation that can fail; if it does, no parameter has changed
        if self._muon is not None:
            self._muon.apply(lr)
        self.zero_grad()
        return norm

    def zero_grad(self) -> None:
        """Drop the gradients, before the next update or a repetition of this one."""
        for parameter in self.parameters:
            parameter.grad = None

    def _adapt_loss_scale(self, overflowed: Tensor) -> None:
        self._good_updates = torch.where(overflowed, torch.zeros_like(self._good_updates), self._good_updates + 1)
        grows = self._good_updates == GROWTH_INTERVAL
        factor = torch.where(overflowed, 0.5, torch.where(grows, 2.0, 1.0))
        self.loss_scale = (self.loss_scale * factor).clamp(min=1.0)
        self._good_updates = torch.where(grows, torch.zeros_like(self._good_updates), self._good_updates)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that the next update depends on."""
        return {
            "adam": self._adam.state_dict(),
            "muon": None if self._muon is None else self._muon.state_dict(),
            "scales_loss": self.scales_loss,
            "loss_scale": self.loss_scale,
            "good_updates": self._good_updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from a `state_dict`."""
        self._adam.load_state_dict(state["adam"])
        if self._muon is not None:
            self._muon.load_state_dict(state["muon"])
        device = self.loss_scale.device
        # If a run continues in another precision, the loss scale keeps its initial value.
        if self.scales_loss and state["scales_loss"]:
            self.loss_scale = state["loss_scale"].to(device)
            self._good_updates = state["good_updates"].to(device)


class MovingAverage:
    """Exponential moving average: average = decay · average + (1 - decay) · weights, after each update.

    The decay is at most (1 + step) / (10 + step): it starts low and rises to its setting, so that the initial weights
    soon lose their influence.

    Source: Polyak and Juditsky 1992; the warm-up is that of TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: Transformer, decay: float) -> None:
        self._decay = decay
        self._averages = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        # Fused SGD updates all averages in a few kernel launches, without more memory. Its gradients are the weights.
        # With `maximize` and a weight decay of 1, a step is average += lr · (weights - average).
        self._sgd = torch.optim.SGD(self._averages.values(), lr=0.0, weight_decay=1.0, maximize=True, fused=True)
        for average, parameter in zip(self._averages.values(), model.parameters(), strict=True):
            average.grad = parameter.detach()

    def update(self, step: int, was_skipped: Tensor) -> None:
        """Add the weights after an update; if `was_skipped`, on the device, is 1.0, the average does not change."""
        self._sgd.param_groups[0]["lr"] = 1 - min(self._decay, (1 + step) / (10 + step))
        # torch reads it from the object, as it does from Adam.
        self._sgd.found_inf = was_skipped  # type: ignore[attr-defined]
        self._sgd.step()

    def state_dict(self) -> dict[str, Tensor]:
        """Return the averaged weights, named as in the state dict of the model."""
        return dict(self._averages)

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from a `state_dict`."""
        for name, average in self._averages.items():
            average.copy_(state[name])
