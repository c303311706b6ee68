"""Writes the small PyTorch state dict that the weight reader's tests read.

Usage: python state_dict.py OUT.pth   (PyTorch 2.11)
"""

import sys

import torch

torch.save({"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}, sys.argv[1])
