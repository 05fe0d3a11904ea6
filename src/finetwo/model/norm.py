"""A layer norm that also adds what the step before it leaves to the residual stream.

It knows no attention and no linear. Its one invariant: the sum stays in the precision of the stream, float32 in mixed
precision, whatever that of the norm's output.
"""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn

from finetwo.model.mixed import Lowerable
from finetwo.model.passes import AddNorm, kernels


class Norm(nn.LayerNorm, Lowerable):
    """A layer norm over the last dimension with the names of a checkpoint, `weight` and `bias`."""

    def working_copies(self, dtype: object) -> None:
        """None: it computes in float32."""

    def after(self, x: Tensor, delta: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return `x + delta` and its norm, each of the shape of x; in 16 bits where a kernel writes them."""
        if self.lowered is None or kernels(x.device, self.lowered) is None:
            total = x if delta is None else x + delta
            return total, self(total)
        flat = x.reshape(-1, x.shape[-1]).float().contiguous()
        more = None if delta is None else delta.reshape(flat.shape).contiguous()
        found = AddNorm.apply(flat, more, self.weight, self.bias, self.eps, self.lowered)  # type: ignore[no-untyped-call]
        total, y = (flat, found) if more is None else found
        return cast(Tensor, total).view(x.shape), cast(Tensor, y).view(x.shape)
