"""Problem documents: their form and identity; what they mean in CVXPY, ``compile``, is imported where it is needed."""

from .identity import Identified, identified
from .model import ConeProgramDocument, ExpressionDocument, problem_documents

__all__ = ["ConeProgramDocument", "ExpressionDocument", "Identified", "identified", "problem_documents"]
