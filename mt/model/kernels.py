"""Kernels: the operations that layers are made of. `Kernels` is the reference, in plain torch.

The compiler sees the reference, and all other kernels are tested against it. A model gets its kernels once, by device
and mode: see `training_kernels` and `inference_kernels` in cpu.py.

T rows, D d_model, F output features, V rows of the embedding; H heads, G heads of keys and values, E features of a
head; n tiles, Wq and Wk their widths; in decoding B sentences, k open beams, s slots.
Sources: Vaswani et al. 2017, section 3.2; for groups of heads that share keys and values, Ainslie et al. 2023.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from mt.data.batch import Layout, TileLayout, VarlenLayout

FLASH_TAKES_GROUPS = "enable_gqa" in inspect.signature(varlen_attn).parameters  # not in torch 2.11


@dataclass(frozen=True)
class Activation:
    """The activation of a feed-forward network: an epilogue that its first product can include, then `forward`."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # takes the gradient of the output, and the input of `forward`
    epilogue: str = "none"  # or "relu", which a product can compute in the same pass
    n_inputs: int = 1  # 2 if gated: `forward` multiplies the activation of the first half by the second

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of x, epilogue included."""
        return self.forward(functional.relu(x) if self.epilogue == "relu" else x)

    def __reduce__(self) -> tuple[Any, ...]:
        return activation, (self.name,)


def activation(name: str) -> Activation:
    """Return the activation of this name."""
    return ACTIVATIONS[name]


def _gated(name: str, base: Activation) -> Activation:
    def forward(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return base.forward(gate) * value

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return torch.cat([base.backward(grad * value, gate), grad * base.forward(gate)], -1)

    return Activation(name, forward, backward, n_inputs=2)


_GELU = Activation("gelu", functional.gelu, torch.ops.aten.gelu_backward.default)  # Hendrycks and Gimpel 2016
_SILU = Activation("silu", functional.silu, torch.ops.aten.silu_backward.default)  # Elfwing et al. 2017
ACTIVATIONS = {
    "relu": Activation("relu", lambda x: x, lambda grad, x: torch.ops.aten.threshold_backward(grad, x, 0), "relu"),
    "gelu": _GELU,
    "silu": _SILU,
    "relu2": Activation("relu2", torch.square, lambda grad, x: 2 * grad * x, "relu"),  # So et al. 2021 (Primer)
    "geglu": _gated("geglu", _GELU),  # Shazeer 2020
    "swiglu": _gated("swiglu", _SILU),
}


@dataclass(frozen=True)
class Rows:
    """The rows of a batch for attention: which of them belong to the same sentence, and the masks."""

    layout: Layout
    # For tiles: [n, 1 or H, Wq or 1, Wk] of each group, position bias included. For packed sentences, if there is a
    # position bias: [H, 2 longest + 1], the bias of each distance, key minus query.
    masks: tuple[Tensor, ...]
    is_causal: bool  # for packed sentences; masks of tiles include it
    dropout: float  # of attention weights


class Kernels:
    """The reference kernels, for any device."""

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Return x Wᵀ + b in the type of x."""
        return functional.linear(x, layer.weight.to(x.dtype), in_type_of(x, layer.bias))

    def feed_forward(self, x: Tensor, inner: nn.Linear, activation: Activation, outer: nn.Linear) -> Tensor:
        """Return two linear layers of x with the activation between them."""
        return self.linear(activation(self.linear(x, inner)), outer)

    def layer_norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        """Return the layer norm of x in the type of x; statistics are computed in float32."""
        weight, bias = in_type_of(x, layer.weight), in_type_of(x, layer.bias)
        return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    def rms_norm(self, x: Tensor, layer: nn.RMSNorm) -> Tensor:
        """Return x divided by its root mean square, times a weight."""
        return functional.rms_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.eps)

    def scaled_sum(self, rows: Tensor, scale: float, added: Tensor) -> Tensor:
        """Return rows × scale + added in float32."""
        return rows.float() * scale + added

    def logits(self, x: Tensor, output: nn.Embedding) -> Tensor:
        """Return x [T, D] times all rows of the output's embedding [V, D]."""
        return functional.linear(x, output.weight)

    def packed(self, layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
        """Return weight and bias of a layer in the form that products use; None: they use the parameters."""
        return None

    def begin_update(self) -> None:
        """Renew the copies of the weights, which the optimizer has changed."""

    def attend(self, rows: Rows, *projections: Tensor) -> Tensor:
        """Return the attention of each query to the keys of its sentence; if causal, to those up to its position.

        Args:
            projections: [T, n, heads, E]: queries, keys and values, in this order, in one tensor or in several.
        Returns:
            [Tq, H E]. Rows of padding have finite values without meaning.
        """
        q, k, v = separate(projections)
        if isinstance(rows.layout, TileLayout):
            return _tiled(q, k, v, rows, rows.layout).flatten(1)
        assert rows.dropout == 0, "flash attention has no dropout"
        assert not rows.masks, "flash attention does not support biases"
        return flash(q, k, v, rows.layout, rows.is_causal).flatten(1)

    def attend_step(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return attention of a few queries [B, H, k, E] to [B, G, s, E]; the mask is added to the scores."""
        return masked_attention(q, k, v, mask)


class Layer(nn.Module):
    """A module that computes with kernels, which can be replaced."""

    kernels: Kernels = Kernels()

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...


class Inference(Kernels):
    """The reference kernels without a backward pass."""

    def scaled_sum(self, rows: Tensor, scale: float, added: Tensor) -> Tensor:
        return torch.add(added, rows, alpha=scale)  # in one pass


class NarrowCudaInference(Inference):
    """CUDA kernels for types narrower than float32. Logits are float32, because rounded logits can be equal."""

    def logits(self, x: Tensor, output: nn.Embedding) -> Tensor:
        return torch.mm(x, output.weight.t(), out_dtype=torch.float32)


def in_type_of(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Return the parameter in the type of x; None if there is none."""
    return None if parameter is None else parameter.to(x.dtype)


def separate(projections: tuple[Tensor, ...]) -> list[Tensor]:
    """Return all projections [T, n, heads, E] as separate tensors [T, heads, E]."""
    # The gradient of `unbind` is a copy, that of `squeeze` a view.
    return [part for x in projections for part in (x.unbind(1) if x.shape[1] > 1 else (x.squeeze(1),))]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Return [..., H, Wq, E] from q [..., H, Wq, E], and k and v [..., G, Wk, E]: two matrix products and a softmax.

    On a CPU this is several times faster than torch's fused kernels, whose backward pass took 47% of a step.

    Args:
        mask: added to the scores, broadcast to [..., H, Wq, Wk].
    """
    scores = attention_scores(q, k, mask)
    weights = functional.softmax(scores, -1)
    if dropout > 0:
        weights = functional.dropout(weights, dropout)
    return torch.matmul(in_groups(weights, k), v).view(q.shape)


def attention_scores(q: Tensor, k: Tensor, mask: Tensor | None) -> Tensor:
    """Return [..., H, Wq, Wk]; see `masked_attention`."""
    scores = torch.matmul(in_groups(q * q.shape[-1] ** -0.5, k), k.transpose(-1, -2))
    scores = scores.view(*q.shape[:-1], k.shape[-2])
    return scores if mask is None else scores + mask


def in_groups(x: Tensor, keys: Tensor) -> Tensor:
    """Return x [..., H, Wq, E] as [..., G, H/G Wq, E]: heads that share keys become query rows; keys are not copied."""
    n_heads, n_groups = x.shape[-3], keys.shape[-3]
    if n_heads == n_groups:
        return x
    return x.view(*x.shape[:-3], n_groups, n_heads // n_groups, *x.shape[-2:]).flatten(-3, -2)


def _tiled(q: Tensor, k: Tensor, v: Tensor, rows: Rows, layout: TileLayout) -> Tensor:
    parts = []
    for group, mask in zip(layout.groups, rows.masks, strict=True):
        queries, keys, values = (group.tiles(x).transpose(1, 2) for x in (q, k, v))  # [n, heads, W, E]
        out = masked_attention(queries, keys, values, mask, rows.dropout)
        parts.append(out.transpose(1, 2).flatten(0, 1))  # [n W, H, E]
    return concatenated(parts)


def concatenated(parts: list[Tensor]) -> Tensor:
    """Return the parts as one tensor, without a copy if there is only one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def flash(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, is_causal: bool) -> Tensor:
    """Return flash attention [Tq, H, E] over sentences of any length. It needs CUDA, and bf16 or fp16."""
    options: dict[str, Any] = {"enable_gqa": True} if FLASH_TAKES_GROUPS and k.shape[1] < q.shape[1] else {}
    if k.shape[1] < q.shape[1] and not FLASH_TAKES_GROUPS:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    # A window without limit to the left and of 0 to the right is causal; `is_causal` differs between torch versions.
    window = (-1, 0) if is_causal else (-1, -1)
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, layout.cu_q, layout.cu_k, layout.longest, layout.longest, window_size=window, **options
    )
