"""The routing function of TAdaConvV2 (arXiv 2308.05787): frames attend to each other instead of to the clip's mean.

Shapes: N clips, T frames, C channels of the features, C' = C/r hidden channels, h heads of C'/h channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tada.errors import OptionError
from tada.tadaconv import Routing


class RoutingV2(Routing):
    """A routing function with attention over time: frame descriptors -> the scales of each frame's kernel.

    ::

        h = quick_gelu(norm(Conv1d(v)));  h = h + attention(h);  alpha = 1 + Conv1d(h)

    Weights are initialized as in the authors' release: normal with deviation 0.02, biases 0.

    Args:
        out_channels: entries of alpha per frame, by default C.
        bias_channels: entries of beta per frame, where the bias is calibrated too.
        ratio: r; the hidden layer has C/r channels.
        head_channels: channels of a head of the attention.
        kernel_sizes: frames that the convolutions over time see.
        zero_init: True: the last layers start at zero and 1 is added to their output, so that a new layer computes the
            plain convolution (TAdaConvNeXtV2). False: nothing is added, and the last layers are drawn like the others
            (TAdaFormer).

    Raises:
        OptionError: head_channels does not divide the hidden channels, or kernel_sizes are not two odd numbers.
    """

    def __init__(
        self,
        in_channels: int,
        *,
        out_channels: int | None = None,
        bias_channels: int | None = None,
        ratio: int = 2,
        head_channels: int = 64,
        kernel_sizes: tuple[int, int] = (3, 3),
        zero_init: bool = True,
    ) -> None:
        if len(kernel_sizes) != 2:
            raise OptionError(f"{kernel_sizes = } should be two numbers: attention needs a hidden layer")
        super().__init__(
            in_channels,
            out_channels=out_channels,
            bias_channels=bias_channels,
            ratio=ratio,
            kernel_sizes=kernel_sizes,
            global_context=False,
            norm="layer",
        )
        assert self.reduce is not None
        hidden = self.reduce.out_channels
        self.attention = AttentionOverTime(hidden, head_channels)
        self.offset = 1.0 if zero_init else 0.0
        drawn: list[nn.Module | None] = [self.reduce, self.attention.qkv, self.attention.projection]
        for layer in drawn if zero_init else [*drawn, self.alpha, self.beta]:
            if not isinstance(layer, nn.Conv1d | nn.Linear):
                continue  # without a bias there is no beta
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)

    def _normalized(self, h: Tensor) -> Tensor:
        assert self.norm is not None
        rows: Tensor = self.attention(quick_gelu(self.norm(h.transpose(1, 2))))
        return rows.transpose(1, 2)


class AttentionOverTime(nn.Module):
    """A norm and self-attention between the frames of a clip, added to the input.

    It has the two oddities that the released weights were trained with. The scale is C'^-0.5, of all channels instead
    of those of one head. And a head's channels are interleaved with those of the other heads on the way in: head k
    reads the channels ``i * heads + k``, and writes ``k * head_channels + i``.
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        if head_channels < 1 or channels % head_channels:
            raise OptionError(f"{head_channels = } should divide the {channels} hidden channels of a routing function")
        self.head_channels = head_channels
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.projection = nn.Linear(channels, channels)

    def forward(self, h: Tensor) -> Tensor:
        """[N, T, C'] -> the same shape."""
        n, t, c = h.shape
        heads = c // self.head_channels
        q, k, v = self.qkv(self.norm(h)).view(n, t, 3, self.head_channels, heads).permute(2, 0, 4, 1, 3).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=c**-0.5)  # [N, heads, T, head_channels]
        attended: Tensor = h + self.projection(y.transpose(1, 2).reshape(n, t, c))
        return attended


QUICK = 1.702


def quick_gelu(x: Tensor) -> Tensor:
    """The approximation of GELU that CLIP uses, ``x * sigmoid(1.702 x)``."""
    return x * torch.sigmoid(QUICK * x)
