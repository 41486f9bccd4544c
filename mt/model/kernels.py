"""What layers compute with. The reference is plain torch: the compiler sees it, and all else is tested against it.

A model is given its kernels once, by device and mode: see `cpu.py`.

T rows, D d_model, F features out, V rows of the embedding; H heads, G heads of keys and values, E features of a head;
n tiles, Wq and Wk their widths; in decoding B sentences, k open beams, s slots.
Source: Vaswani et al. 2017, section 3.2; groups of heads that share keys and values, Ainslie et al. 2023.
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
    """What is between the two products of a feed-forward network: an epilogue of the first, then `forward`."""

    name: str
    forward: Callable[[Tensor], Tensor]
    backward: Callable[[Tensor, Tensor], Tensor]  # of the gradient and what `forward` was given
    epilogue: str = "none"  # or "relu", which the product of oneDNN does in the same pass
    n_inputs: int = 1  # 2 in gated forms: the first half is activated, the second multiplied

    def __call__(self, x: Tensor) -> Tensor:
        """Return the activation of x, which no epilogue has changed."""
        return self.forward(functional.relu(x) if self.epilogue == "relu" else x)

    def __reduce__(self) -> tuple[Any, ...]:
        return activation, (self.name,)


def activation(name: str) -> Activation:
    """Return the activation of this name."""
    return ACTIVATIONS[name]


def _gated(name: str, of: Activation) -> Activation:
    def forward(x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return of.forward(gate) * value

    def backward(grad: Tensor, x: Tensor) -> Tensor:
        gate, value = x.chunk(2, -1)
        return torch.cat([of.backward(grad * value, gate), grad * of.forward(gate)], -1)

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
    """Where the sentences of a batch lie."""

    layout: Layout
    # [n, 1 or H, Wq or 1, Wk] of each group of tiles, with the bias of positions. Of packed sentences, where positions
    # have a bias: [H, 2 longest + 1], that of each distance, key minus query.
    masks: tuple[Tensor, ...]
    is_causal: bool  # tiles have it in their masks
    dropout: float  # of attention weights


class Kernels:
    """The reference, on any device."""

    def linear(self, x: Tensor, layer: nn.Linear) -> Tensor:
        """Return x Wᵀ + b in the type of x."""
        return functional.linear(x, layer.weight.to(x.dtype), in_type_of(x, layer.bias))

    def feed_forward(self, x: Tensor, inner: nn.Linear, activation: Activation, outer: nn.Linear) -> Tensor:
        """Return two linear layers of x with the activation between them."""
        return self.linear(activation(self.linear(x, inner)), outer)

    def layer_norm(self, x: Tensor, layer: nn.LayerNorm) -> Tensor:
        """Return the layer norm of x in its type; statistics are taken in float32."""
        weight, bias = in_type_of(x, layer.weight), in_type_of(x, layer.bias)
        return functional.layer_norm(x, layer.normalized_shape, weight, bias, layer.eps)

    def rms_norm(self, x: Tensor, layer: nn.RMSNorm) -> Tensor:
        """Return x over the root of its mean square, times a weight."""
        return functional.rms_norm(x, layer.normalized_shape, layer.weight.to(x.dtype), layer.eps)

    def scaled_sum(self, rows: Tensor, scale: float, added: Tensor) -> Tensor:
        """Return rows × scale + added in float32."""
        return rows.float() * scale + added

    def logits(self, x: Tensor, output: nn.Embedding) -> Tensor:
        """Return x [T, D] times all rows of the output's embedding [V, D]."""
        return functional.linear(x, output.weight)

    def packed(self, layer: nn.Module) -> tuple[Tensor, Tensor | None] | None:
        """Return what stands for weight and bias of a layer in products; None: they do."""
        return None

    def begin_update(self) -> None:
        """Take in that the weights have changed."""

    def attend(self, rows: Rows, *projections: Tensor) -> Tensor:
        """Let each query attend to the keys of the same sentence, in causal rows only to those up to its position.

        Args:
            projections: [T, n, heads, E]: queries, keys and values, in this order, in one tensor or in several.
        Returns:
            [Tq, H E]. Rows of no sentence hold finite values that mean nothing.
        """
        q, k, v = separate(projections)
        if isinstance(rows.layout, TileLayout):
            return _tiled(q, k, v, rows, rows.layout).flatten(1)
        assert rows.dropout == 0, "flash attention has no dropout"
        assert not rows.masks, "flash attention takes no biases"
        return flash(q, k, v, rows.layout, rows.is_causal).flatten(1)

    def attend_step(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return attention of a few queries [B, H, k, E] to [B, G, s, E], with a mask to add to the scores."""
        return masked_attention(q, k, v, mask)


class Layer(nn.Module):
    """A module, and the kernels that it computes with."""

    kernels: Kernels = Kernels()

    if TYPE_CHECKING:

        def __call__(self, *args: Any) -> Tensor: ...


class Inference(Kernels):
    """The reference, where there is no backward pass."""

    def scaled_sum(self, rows: Tensor, scale: float, added: Tensor) -> Tensor:
        return torch.add(added, rows, alpha=scale)  # in one pass


class NarrowCudaInference(Inference):
    """For types narrower than float32. Logits are float32, since rounded ones tie."""

    def logits(self, x: Tensor, output: nn.Embedding) -> Tensor:
        return torch.mm(x, output.weight.t(), out_dtype=torch.float32)


def in_type_of(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Return the parameter, if there is one, in the type of x."""
    return None if parameter is None else parameter.to(x.dtype)


def separate(projections: tuple[Tensor, ...]) -> list[Tensor]:
    """Return what is side by side in [T, n, heads, E] as tensors [T, heads, E]."""
    # The gradient of `unbind` is a copy, that of `squeeze` a view.
    return [part for x in projections for part in (x.unbind(1) if x.shape[1] > 1 else (x.squeeze(1),))]


def masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Return [..., H, Wq, E] from q [..., H, Wq, E], and k and v [..., G, Wk, E]: two matrix products and a softmax.

    On a CPU this is several times faster than torch's fused kernels, whose backward pass alone took 47% of a step.

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
    """Return [..., G, H/G Wq, E] of x [..., H, Wq, E]: heads that share keys become query rows, keys are not copied."""
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
    return joined(parts)


def joined(parts: list[Tensor]) -> Tensor:
    """Return the rows of all parts; a copy only where there are several."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def flash(q: Tensor, k: Tensor, v: Tensor, layout: VarlenLayout, is_causal: bool) -> Tensor:
    """Return flash attention [Tq, H, E] over sentences of any length; on CUDA, in bf16 or fp16."""
    options: dict[str, Any] = {"enable_gqa": True} if FLASH_TAKES_GROUPS and k.shape[1] < q.shape[1] else {}
    if k.shape[1] < q.shape[1] and not FLASH_TAKES_GROUPS:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    # A window without end to the left and none to the right is causal; `is_causal` moved between torch versions.
    window = (-1, 0) if is_causal else (-1, -1)
    return varlen_attn(  # type: ignore[return-value]
        q, k, v, layout.cu_q, layout.cu_k, layout.longest, layout.longest, window_size=window, **options
    )
