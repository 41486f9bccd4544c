"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from mt.config import TrainConfig


def learning_rate(step: int, train: TrainConfig, d_model: int) -> float:
    """The learning rate of update `step`, counted from 1.

    Linear up to `warmup_steps`, then in proportion to step^-0.5. Without `peak_lr` it is the paper's,
    d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5), whose peak is (d_model · warmup_steps)^-0.5.

    Source: Vaswani et al. 2017, section 5.3.
    """
    assert step >= 1
    peak = 1 / math.sqrt(d_model * train.warmup_steps) if train.peak_lr is None else train.peak_lr
    return peak * min(step / train.warmup_steps, math.sqrt(train.warmup_steps / step))
