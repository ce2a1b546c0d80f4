"""Ruiz equilibration in all its forms: the method and its constants are in ``ruiz``."""

from convexlayer.linalg.equilibration.programs import program_scales
from convexlayer.linalg.equilibration.symmetric import equilibration

__all__ = ["equilibration", "program_scales"]
