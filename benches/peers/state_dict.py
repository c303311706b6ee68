"""Writes the small PyTorch state dicts that the weight reader's tests read.

Usage: python state_dict.py OUT.pth OUT_LEGACY.pth   (PyTorch 2.11)
"""

import sys

import torch

tensors = {"a.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(7)}
torch.save(tensors, sys.argv[1])
torch.save(tensors, sys.argv[2], _use_new_zipfile_serialization=False)
