"""Problem documents: their form, their grammar, and what they mean in CVXPY."""

from .compile import PosedProblem, pose
from .cone_program import read_program
from .grammar import Grammar
from .identity import normalise, problem_id
from .model import ConeProgramDocument, ExpressionDocument, ProblemDocument, problem_documents

__all__ = [
    "ConeProgramDocument",
    "ExpressionDocument",
    "Grammar",
    "PosedProblem",
    "ProblemDocument",
    "normalise",
    "pose",
    "problem_documents",
    "problem_id",
    "read_program",
]
