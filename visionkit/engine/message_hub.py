"""mmengine's message hub, which gathers a run's logs, as plain tensors and numbers and back."""

from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer


def plain_message_hub(state: dict[str, Any]) -> dict[str, Any]:
    """A message hub's state with its history buffers as tensors, so that ``weights_only`` reads it."""
    logs = {
        name: dict(log=torch.as_tensor(buffer.data[0]), count=torch.as_tensor(buffer.data[1]))
        for name, buffer in state["log_scalars"].items()
    }
    runtime = {
        key: value.item() if isinstance(value, np.generic) else value
        for key, value in state["runtime_info"].items()
        if isinstance(value, (int, float, str))
    }
    return dict(log_scalars=logs, runtime_info=runtime, resumed_keys=dict(state["resumed_keys"]))


def message_hub_state(plain: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`plain_message_hub`."""
    logs = {
        name: HistoryBuffer(entry["log"].cpu().numpy().tolist(), entry["count"].cpu().numpy().tolist())
        for name, entry in plain["log_scalars"].items()
    }
    return dict(plain, log_scalars=logs)
