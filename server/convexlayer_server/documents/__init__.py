"""Problem documents: their schema and identity.

Modules that import CVXPY, such as ``cvxpy_problem``, are not imported here: only workers need them.
"""

from .identity import IdentifiedDocument, identify
from .model import ConeProgramDocument, ExpressionDocument, problem_documents

__all__ = ["ConeProgramDocument", "ExpressionDocument", "IdentifiedDocument", "identify", "problem_documents"]
