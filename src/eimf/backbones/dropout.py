"""Dropout with fast random numbers on a CPU."""

import torch
from torch import Tensor, nn

_LEVELS = 2**16  # one random 16-bit number per element


class Dropout(nn.Module):
    """Inverted dropout, like `torch.nn.Dropout`, but several times faster on a CPU.

    On a CPU, PyTorch samples one Bernoulli variable at a time, which takes a sixth of a ComiRec-SA training step. Here,
    each random 64-bit number is used for four elements.

    Args:
        rate: probability of zeroing an element, in steps of 2^-16.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def extra_repr(self) -> str:
        return f"rate={self.rate}"

    def forward(self, x: Tensor) -> Tensor:
        """Apply dropout. Returns `x` itself in evaluation."""
        if not self.training or self.rate == 0:
            return x
        if x.device.type != "cpu":
            return nn.functional.dropout(x, self.rate)
        dropped = round(self.rate * _LEVELS)
        words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        bits = words.view(torch.int16)[: x.numel()].view(x.shape)
        return x * (bits >= dropped - _LEVELS // 2).to(x.dtype).mul_(_LEVELS / (_LEVELS - dropped))
