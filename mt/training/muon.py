"""Muon: momentum whose update of each matrix is made orthogonal.

N matrices of one shape, R rows and C columns, R ≤ C: taller ones are transposed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

# The polynomial a x + b x³ + c x⁵ brings singular values near 1. Source: Jordan et al. 2024 (Muon).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_ITERATIONS = 5
SMALLEST_NORM = 1e-7
# An orthogonal matrix times 0.2 √C has about the root mean square of an update of Adam, so that one learning rate fits
# both. Source: Liu et al. 2025 (Muon is scalable for LLM training), section 2.2.
ADAM_RMS = 0.2


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return U V^T of each matrix U S V^T, approximately: singular values end between about 0.7 and 1.2.

    Args:
        matrices: [N, R, C], R ≤ C, in the type of the matrix products.
    """
    a, b, c = COEFFICIENTS
    x: Tensor = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(N_ITERATIONS):
        gram = x @ x.mT  # [N, R, R]
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


class Muon:
    """Muon with Nesterov momentum for matrices, without synchronising the host and the device.

    Source: Jordan et al. 2024.

    Args:
        matrices: the parameters, each with the rows of the projections in it; each projection is a separate matrix.
        dtype: type of the matrix products.
    """

    def __init__(
        self,
        matrices: Iterable[tuple[Tensor, Sequence[int]]],
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        self._momentum, self._weight_decay, self._dtype = momentum, weight_decay, dtype
        # Matrices of one shape are one batch: parameters and the slices of their rows.
        self._batches: dict[tuple[int, int], list[tuple[Tensor, slice]]] = {}
        for parameter, parts in matrices:
            begin = 0
            for n_rows in parts:
                shape = min(n_rows, parameter.shape[1]), max(n_rows, parameter.shape[1])
                self._batches.setdefault(shape, []).append((parameter, slice(begin, begin + n_rows)))
                begin += n_rows
        self._averages = [
            torch.zeros(len(batch), *shape, device=batch[0][0].device) for shape, batch in self._batches.items()
        ]
        self._next: list[tuple[Tensor, list[Tensor]]] = []

    @torch.no_grad()
    def compute(self, divisor: Tensor, not_finite: Tensor) -> None:
        """Compute the next update, and change neither the matrices nor the state.

        Args:
            divisor: of the gradients, a scalar on the device.
            not_finite: true if a gradient is NaN or infinite; the update then changes nothing.
        """
        self._next.clear()
        for (shape, batch), average in zip(self._batches.items(), self._averages, strict=True):
            gradients = torch.stack([_wide(_gradient(parameter)[rows]) for parameter, rows in batch]) / divisor
            gradients = torch.where(not_finite, 0.0, gradients)
            moved = torch.lerp(average, gradients, 1 - self._momentum)
            update = orthogonalised(torch.lerp(gradients, moved, self._momentum).to(self._dtype)).float()
            update = update * torch.where(not_finite, 0.0, ADAM_RMS * math.sqrt(shape[1]))
            if self._weight_decay:
                decay = torch.where(not_finite, 0.0, self._weight_decay)
                update += torch.stack([_wide(parameter[rows]) for parameter, rows in batch]) * decay
            updates = [
                one if parameter[rows].shape == shape else one.T
                for one, (parameter, rows) in zip(update, batch, strict=True)
            ]
            self._next.append((torch.where(not_finite, average, moved), updates))

    @torch.no_grad()
    def apply(self, lr: float) -> None:
        """Change the matrices and the state by the computed update."""
        for batch, average, (moved, updates) in zip(self._batches.values(), self._averages, self._next, strict=True):
            average.copy_(moved)
            for (parameter, rows), update in zip(batch, updates, strict=True):
                parameter[rows].add_(update, alpha=-lr)
        self._next.clear()

    def state_dict(self) -> list[Tensor]:
        """Return the averages of the gradients, a tensor for each shape."""
        return self._averages

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        """Continue from a `state_dict`."""
        for average, saved in zip(self._averages, state, strict=True):
            average.copy_(saved)


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _wide(matrix: Tensor) -> Tensor:
    return matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
