"""The curved cones in compiled form: scalar functions of one block, one module per cone, and their table."""

from __future__ import annotations

from convexlayer.cones.kernels.block import NEEDS_DISTANCE, Block
from convexlayer.cones.kernels.table import derive_blocks, project_blocks, table_of, warm_up

__all__ = ["NEEDS_DISTANCE", "Block", "derive_blocks", "project_blocks", "table_of", "warm_up"]
