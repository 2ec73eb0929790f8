"""Triton reads this once, when it is first imported: without a device its interpreter stands in for one."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
