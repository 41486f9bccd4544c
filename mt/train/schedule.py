"""The learning rate as a function of the step."""

from __future__ import annotations

import math

from mt.config.settings import TrainConfig


def peak_learning_rate(train: TrainConfig, d_model: int) -> float:
    """Return `peak_lr`, or the paper's (d_model · warmup_steps)^-0.5. Source: Vaswani et al. 2017, section 5.3."""
    return 1 / math.sqrt(d_model * train.warmup_steps) if train.peak_lr is None else train.peak_lr


def learning_rate(step: int, train: TrainConfig, d_model: int) -> float:
    """Return the learning rate of update `step`, counted from 1: linear up to `warmup_steps`, then by `schedule`.

    - inverse_sqrt: in proportion to step^-0.5; with the default peak this is the paper's
      d_model^-0.5 · min(step^-0.5, step · warmup_steps^-1.5) (Vaswani et al. 2017, section 5.3).
    - cosine: half a cosine down to final_lr_share at max_steps (Loshchilov and Hutter 2017, without restarts).
    - linear: straight down to final_lr_share at max_steps.
    - warmup_stable_decay: level, then straight down over the last decay_share of max_steps (Hu et al. 2024).
    - constant: level.
    """
    assert step >= 1
    peak = peak_learning_rate(train, d_model)
    if step <= train.warmup_steps:
        return peak * step / train.warmup_steps
    if train.schedule == "inverse_sqrt":
        return peak * math.sqrt(train.warmup_steps / step)
    if train.schedule == "constant":
        return peak
    decay_starts_at = train.warmup_steps
    if train.schedule == "warmup_stable_decay":
        decay_starts_at = max(decay_starts_at, round(train.max_steps * (1 - train.decay_share)))
    n_decay_steps = max(train.max_steps - decay_starts_at, 1)
    progress = min(max(step - decay_starts_at, 0) / n_decay_steps, 1.0)
    share = (1 + math.cos(math.pi * progress)) / 2 if train.schedule == "cosine" else 1 - progress
    return peak * (train.final_lr_share + (1 - train.final_lr_share) * share)
