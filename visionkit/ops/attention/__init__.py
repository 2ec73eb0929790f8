"""Attention, one mechanism a file, one interface: ``(q, k, v, *, ...)`` with (batch, heads, tokens, head_dim) tensors.

``attention_names()`` lists them, ``mechanism(name)`` tells what is known of one, ``attend(name, q, k, v)`` calls it.
"""

from visionkit.ops.attention._registry import MASKS, Mechanism, attend, attention_names, mechanism

__all__ = ["MASKS", "Mechanism", "attend", "attention_names", "mechanism"]
