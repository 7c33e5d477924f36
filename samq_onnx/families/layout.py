# SPDX-License-Identifier: Apache-2.0
"""How an image lies in an input: which axis counts what, and which sides a graph with free ones is made for."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from samq_onnx.errors import UserError
from samq_onnx.families.ports import NUMBERS, Port
from samq_onnx.ops import DOMAIN
from samq_onnx.passes.aside import defaults_aside
from samq_onnx.passes.lift.propagate import propagate

__all__ = ["PATCH", "Layout", "Side", "layout_of", "refuse_free_sides", "side_of", "takes_side"]

CHANNELS = 3
PATCH = 16  # pixels of the image that a cell of an embedding stands for, along each side


class Layout(enum.Enum):
    """Order of axes: N batch, C channels, H and W height and width."""

    NCHW = "NCHW"
    NHWC = "NHWC"
    CHW = "CHW"
    HWC = "HWC"

    def of_batch(self, image: np.ndarray) -> np.ndarray:
        """An image [1, 3, H, W] in this order."""
        if self in (Layout.NHWC, Layout.HWC):
            image = np.ascontiguousarray(image.transpose(0, 2, 3, 1))
        return image if self in (Layout.NCHW, Layout.NHWC) else image[0]

    def sides(self, port: Port) -> tuple[int | None, int | None]:
        """Height and width of an input, None where they are free."""
        return port.side(self.value.index("H")), port.side(self.value.index("W"))


def layout_of(port: Port) -> Layout | None:
    """How an RGB image lies in an input of numbers, None where none can: its channels are three, or are free and lie
    where most exporters have them."""
    if port.dtype not in NUMBERS or port.shape is None:
        return None
    orders = [layout for layout in Layout if len(layout.value) == len(port.shape)]
    if 0 in port.shape:
        return None
    for layout in orders:
        if port.side(layout.value.index("C")) == CHANNELS:
            return layout
    return Layout.NCHW if len(port.shape) == 4 and port.side(1) is None else None


def refuse_free_sides(inputs: Sequence[Port], where: str) -> None:
    """For a file that was given no size, whose graph tells none.

    Args:
        where: what messages call it.

    Raises:
        UserError: its only input is an image of free sides.
    """
    if len(inputs) == 1 and (layout := layout_of(inputs[0])) is not None and None in layout.sides(inputs[0]):
        raise UserError(f"{where}: takes {inputs[0]}, an image of free sides; give --input-size SIDE")


class Side(NamedTuple):
    """Of a square image.

    Attributes:
        pixels: along a side.
        stretched: whether the model brings images of any sides to that square itself.
    """

    pixels: int
    stretched: bool


def side_of(model: ir.Model, name: str, layout: Layout) -> Side | None:
    """Side of the square image that a model with free sides is made for, if its graph tells: one whose cells of 16
    pixels are those of the smallest map that it gives out, as of a table of positions, or of any image brought to a
    square."""
    probe = _told(model, name, None)
    grid = _finest_grid(probe)
    if probe is None or grid is None:
        return None
    pixels = PATCH * grid
    if not takes_side(model, name, layout, pixels, grid):
        return None
    return Side(pixels, any(_stretches(node, pixels) for node in probe.graph))


def takes_side(model: ir.Model, name: str, layout: Layout, pixels: int, grid: int) -> bool:
    """Whether a model makes a smallest map of ``grid`` cells a side of an image of so many pixels."""
    shape = {"N": 1, "C": CHANNELS, "H": pixels, "W": pixels}
    return _finest_grid(_told(model, name, [shape[axis] for axis in layout.value])) == grid


def _stretches(node: ir.Node, pixels: int) -> bool:
    """Whether the node brings maps of free sides to a square."""
    before, after = (node.inputs[0], node.outputs[0]) if node.op_type == "Resize" and not node.domain else (None, None)
    if before is None or after is None or before.shape is None or after.shape is None or len(before.shape) != 4:
        return False
    return list(after.shape[2:]) == [pixels, pixels] and not any(isinstance(side, int) for side in before.shape[2:])


def _told(model: ir.Model, name: str, shape: list[int] | None) -> ir.Model | None:
    """A copy of a model whose values have the shapes that its graph tells; None where it cannot be followed.

    Args:
        name, shape: of an input; what is known of its shape where that is None.
    """
    try:
        probe = model.clone()
        with defaults_aside(probe):
            common.TopologicalSortPass()(probe)
            common.InlinePass(lambda function: function.domain != DOMAIN)(probe)
            common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(probe)
            for value in probe.graph.inputs:
                if value.name == name and shape is not None:
                    value.shape = ir.Shape(shape)
            for node in probe.graph:
                for value in node.outputs:
                    if node.domain == "":
                        value.shape = None  # what the file says may be of another size
            propagate(probe)
    except Exception:  # of a graph that onnx_ir cannot follow
        return None
    return probe


def _finest_grid(probe: ir.Model | None) -> int | None:
    """Side of the smallest square map [N, C, G, G] that a model gives out, of those that are known; one cell is what
    pooling makes of any image."""
    if probe is None:
        return None
    maps = [list(value.shape) for value in probe.graph.outputs if value.shape is not None and len(value.shape) == 4]
    sides = [side for _, _, height, side in maps if isinstance(side, int) and height == side > 1]
    return min(sides, default=None)
