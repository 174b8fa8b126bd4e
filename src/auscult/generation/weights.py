"""Weights where the processor's kernels expect them, and what identifies them."""

from __future__ import annotations

import hashlib
import json
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


def weights_digest(module: Any) -> str:
    """SHA-256 over a model's configuration and weights, hexadecimal, wherever it was loaded from.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 5)
    >>> before = weights_digest(layer)
    >>> _ = layer.weight.data.mul_(2)
    >>> weights_digest(layer) == before
    False
    """
    config = getattr(module, "config", {})
    values = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    kept = {name: value for name, value in values.items() if not name.startswith("_") and name != "transformers_version"}
    digest = hashlib.sha256(json.dumps([type(module).__name__, kept], sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().data)
    return digest.hexdigest()
