"""Weights where the processor's kernels expect them."""

from __future__ import annotations

from typing import Any

import torch


@torch.no_grad()
def aligned(model: Any) -> Any:
    """Give every weight memory of its own, and return the model.

    A file of safetensors is mapped into memory, so a loaded weight begins wherever its bytes do in the file. Products with
    it may then be rounded in another order than with the same weight at an aligned address (seen with a product of one row:
    2e-7), and a saved model would not be bitwise the one that was saved.

    Examples
    --------
    >>> layer = aligned(torch.nn.Linear(3, 5))
    >>> layer.weight.data_ptr() % 64
    0
    """
    for weight in (*model.parameters(), *model.buffers()):
        if weight.device.type == "cpu" and weight.data_ptr() % 64:
            weight.data = weight.data.clone(memory_format=torch.preserve_format)
    return model
