"""diffcp's derivative against the exact one, on the cones that diffcp supports."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from convexlayer.diff import KKTSystem, SolutionCotangent, derivative_mode
from convexlayer.diff.diffcp_ import DiffcpDifferentiator
from convexlayer.errors import DerivativeError
from convexlayer.testing.programs import Known

from .programs import (
    CONES,
    assemble,
    at,
    data_tangents,
    draw,
    flat_cotangent,
    flat_point,
    ones,
    point_cotangents,
    strict_point,
)

pytest.importorskip("diffcp")

TOLERANCE = 2e-5
"""diffcp is accurate to about 1e-6 on exponential cones (1e-5 at the point of SCS 3.2.6), and to 1e-9 on its other
cones."""

KNOWN = {name: replace(cones, power=()) for name, cones in CONES.items() if name != "power"}


def diffcp_at(drawn: Known) -> DiffcpDifferentiator:
    return DiffcpDifferentiator(KKTSystem(drawn.program.structure), drawn.program, drawn.solution)


@pytest.mark.parametrize("quadratic", [True, False], ids=["quadratic", "linear"])
@pytest.mark.parametrize("name", KNOWN)
def test_diffcp_matches_the_exact_derivative(name: str, quadratic: bool) -> None:
    for seed in range(2):
        rng = np.random.default_rng(seed)
        drawn = draw(rng, KNOWN[name], quadratic=quadratic)
        assert drawn is not None
        tangent = data_tangents(rng, drawn.program.structure, 1)
        kinds = point_cotangents(rng, drawn.program.structure, 1)
        exact, reference = at(drawn), diffcp_at(drawn)
        for i in range(tangent.batch):
            one = tangent.select(slice(i, i + 1))
            expected = flat_point(exact.jvp(one)[0])
            found = flat_point(reference.jvp(one)[0])
            np.testing.assert_allclose(found, expected, atol=TOLERANCE * np.max(np.abs(expected)))
        for i in range(len(kinds.x)):
            one_kind = SolutionCotangent(*(part[i : i + 1] for part in (kinds.x, kinds.y, kinds.s)))
            expected = flat_cotangent(exact.vjp(one_kind)[0], drawn.program.structure)
            gradient, report = reference.vjp(one_kind)
            scale = max(np.max(np.abs(expected)), 1e-3)
            found = flat_cotangent(gradient, drawn.program.structure)
            np.testing.assert_allclose(found, expected, atol=TOLERANCE * scale)
            assert report.status == ("ok",)


def test_small_cotangents_and_tangents_are_not_lost() -> None:
    drawn = draw(np.random.default_rng(0), KNOWN["second_order"], quadratic=True)
    assert drawn is not None
    tiny, one = diffcp_at(drawn).vjp(ones(drawn, 1e-12, 1e-12, 1e-12))[0], diffcp_at(drawn).vjp(ones(drawn))[0]
    flat = flat_cotangent(one, drawn.program.structure)
    np.testing.assert_allclose(1e12 * flat_cotangent(tiny, drawn.program.structure), flat, rtol=1e-6)
    assert np.max(np.abs(flat)) > 1e-3
    step = replace(drawn.program, **{name: 1e-12 * getattr(drawn.program, name) for name in ("P", "q", "A", "b")})
    tiny_step, whole = (flat_point(diffcp_at(drawn).jvp(data)[0]) for data in (step, drawn.program))
    np.testing.assert_allclose(1e12 * tiny_step, whole, atol=1e-6 * np.max(np.abs(whole)))


def test_the_program_is_not_modified() -> None:
    """Explicit zeros of A are kept, and have gradients."""
    rng, cones, n = np.random.default_rng(4), KNOWN["nonnegative"], 3
    w = np.where(np.arange(cones.m) < n, 1.0, -1.0) * rng.uniform(0.5, 1.0, size=cones.m)
    full = assemble(np.zeros((n, n)), rng.normal(size=(cones.m, n)), rng.normal(size=n), w, cones)
    structure, (x, y, s) = full.program.structure, (full.solution.x, full.solution.y, full.solution.s)
    A = full.program.A.copy()
    A[0, 1] = A[0, -1] = 0.0
    program = replace(full.program, A=A, q=-structure.A.rmatvec(A, y), b=structure.A.matvec(A, x) + s)
    drawn, kept = Known(program, full.solution), A.copy()
    gradient, _ = diffcp_at(drawn).vjp(ones(drawn))
    np.testing.assert_array_equal(program.A, kept)
    expected, _ = at(drawn).vjp(ones(drawn))
    structure = drawn.program.structure
    found, known = (flat_cotangent(data, structure) for data in (gradient, expected))
    np.testing.assert_allclose(found, known, atol=1e-8)
    assert gradient.A(structure.A)[0, 1] != 0.0


def test_power_cones_are_rejected() -> None:
    drawn = draw(np.random.default_rng(0), CONES["power"], quadratic=True)
    assert drawn is not None
    with pytest.raises(DerivativeError, match='derivative="exact"'):
        diffcp_at(drawn)


def test_a_point_that_diffcp_does_not_accept() -> None:
    """An infeasible program at an arbitrary point: diffcp's error is wrapped."""
    rng, cones = np.random.default_rng(0), KNOWN["nonnegative"]
    drawn = assemble(np.zeros((2, 2)), rng.normal(size=(cones.m, 2)), np.zeros(2), strict_point(rng, cones)[0], cones)
    infeasible = replace(drawn.program, A=np.zeros_like(drawn.program.A), b=-np.ones_like(drawn.program.b))
    with pytest.raises(DerivativeError, match="element 0"):
        diffcp_at(Known(infeasible, drawn.solution)).vjp(ones(drawn))


def test_modes_by_name() -> None:
    assert derivative_mode("diffcp") is DiffcpDifferentiator
    with pytest.raises(DerivativeError, match="there are: diffcp, exact"):
        derivative_mode("nosuch")
