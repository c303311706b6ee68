"""Reads a safetensors file: eight bytes of header length, a JSON header, then the tensors' bytes."""

import json
from pathlib import Path
from typing import Dict

import numpy as np

TYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "F64": np.dtype("<f8"), "I64": np.dtype("<i8")}


def read_safetensors(path: Path) -> Dict[str, np.ndarray]:
    """Every tensor by its name; ValueError when the file is not one or a tensor has a type that is not known here."""
    data = path.read_bytes()
    n_header = int.from_bytes(data[:8], "little")
    if len(data) < 8 or n_header > len(data) - 8:
        raise ValueError(f"{path} is no safetensors file")
    header = json.loads(data[8 : 8 + n_header])
    body = memoryview(data)[8 + n_header :]
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if entry["dtype"] not in TYPES:
            raise ValueError(f"{name} of {path} has the type {entry['dtype']}")
        start, end = entry["data_offsets"]
        flat = np.frombuffer(body[start:end], TYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors
