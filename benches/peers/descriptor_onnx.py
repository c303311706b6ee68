"""dlib's face descriptor network as an ONNX graph.

The layers are those of dlib's example dnn_face_recognition_ex.cpp, in forward order. `images` is [N, 3, 150, 150],
normalised RGB; `descriptors` is [N, 128]. Weights come by the names of a safetensors file: conv1, affine1,
blocks.0 to blocks.13 with conv1, affine1, conv2, affine2 each, and fc.weight.
"""

from pathlib import Path
from typing import Dict, List, NamedTuple, Tuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from safetensors_file import read_safetensors

OPSET = 17
IR_VERSION = 9
SIDE = 150


class Block(NamedTuple):
    """A residual block: its channels, and whether it halves rows and columns."""

    n_channels: int
    down: bool


BLOCKS = (
    [Block(32, False)] * 3
    + [Block(64, True)] + [Block(64, False)] * 3
    + [Block(128, True)] + [Block(128, False)] * 2
    + [Block(256, True)] + [Block(256, False)] * 2
    + [Block(256, True)]
)


class Graph:
    """Nodes and weights as they are added; each value is known by its name, channels and side."""

    def __init__(self, weights: Dict[str, np.ndarray]) -> None:
        self.weights = weights
        self.nodes: List[onnx.NodeProto] = []
        self.constants: List[onnx.TensorProto] = []

    def add(self, op: str, inputs: List[str], **attributes: object) -> str:
        """Adds a node; gives the name of its output."""
        name = f"{op.lower()}{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], **attributes))
        return name

    def constant(self, name: str, value: np.ndarray) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def weight(self, name: str, shape: Tuple[int, ...]) -> str:
        """A weight of the file, checked; affine ones are laid along the channels."""
        value = self.weights.get(name)
        if value is None:
            raise ValueError(f"the weights hold no {name}")
        if value.size != int(np.prod(shape)):
            raise ValueError(f"{name} has the shape {value.shape}, but {shape} is needed")
        return self.constant(name, value.astype(np.float32).reshape(shape))

    def convolution(self, of: str, conv: str, affine: str, n_in: int, n_out: int, side: int, stride: int) -> str:
        """A convolution with its affine layer. dlib pads by half the filter when the stride is 1, else not at all."""
        pad = side // 2 if stride == 1 else 0
        weights = [self.weight(f"{conv}.weight", (n_out, n_in, side, side)), self.weight(f"{conv}.bias", (n_out,))]
        name = self.add("Conv", [of, *weights], kernel_shape=[side] * 2, strides=[stride] * 2, pads=[pad] * 4)
        name = self.add("Mul", [name, self.weight(f"{affine}.weight", (n_out, 1, 1))])
        return self.add("Add", [name, self.weight(f"{affine}.bias", (n_out, 1, 1))])

    def widened(self, of: str, n_channels: int, side: int) -> str:
        """Zeros after the last channels, rows and columns."""
        if n_channels == side == 0:
            return of
        pads = self.constant(f"pads{len(self.nodes)}", np.array([0, 0, 0, 0, 0, n_channels, side, side], np.int64))
        return self.add("Pad", [of, pads])


def graph(weights: Dict[str, np.ndarray]) -> onnx.ModelProto:
    """The network; ValueError when a weight is missing or of another shape."""
    g = Graph(weights)
    x = g.add("Relu", [g.convolution("images", "conv1", "affine1", 3, 32, 7, 2)])
    x = g.add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
    side = after(after(SIDE, 7), 3)
    n_in = 32
    for idx, block in enumerate(BLOCKS):
        own = f"blocks.{idx}"
        n_out = block.n_channels
        y = g.convolution(x, f"{own}.conv1", f"{own}.affine1", n_in, n_out, 3, 2 if block.down else 1)
        y = g.convolution(g.add("Relu", [y]), f"{own}.conv2", f"{own}.affine2", n_out, n_out, 3, 1)
        if block.down:
            # The pooled input can be a row and a column larger than the convolved one, and has fewer channels.
            x = g.add("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
            convolved, side = after(side, 3), after(side, 2)
            x = g.widened(x, n_out - n_in, 0)
            y = g.widened(y, 0, side - convolved)
        x = g.add("Relu", [g.add("Add", [y, x])])
        n_in = n_out
    x = g.add("Flatten", [g.add("GlobalAveragePool", [x])])
    last = helper.make_node("Gemm", [x, g.weight("fc.weight", (128, n_in))], ["descriptors"], transB=1)
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, SIDE, SIDE])
    descriptors = helper.make_tensor_value_info("descriptors", TensorProto.FLOAT, ["N", 128])
    made = helper.make_graph([*g.nodes, last], "descriptor", [images], [descriptors], g.constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.checker.check_model(model, full_check=True)
    return model


def after(side: int, window: int) -> int:
    """The side that an unpadded window of stride 2 leaves."""
    return 1 + (side - window) // 2


def write(safetensors: Path, out: Path) -> None:
    """Reads the weights and writes the ONNX file."""
    onnx.save(graph(read_safetensors(safetensors)), str(out))
