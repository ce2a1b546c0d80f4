"""Peers that take the matrices of a QP; the timing includes computing these from the parameters."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import cvxpy as cp
import torch

from benchmarks.conic_peers import moreau_settings
from benchmarks.contestant import ACCURACY, Call, Contestant, Setting
from benchmarks.problem import Problem, QPForm, Tensors

__all__ = ["QP_PEERS"]


def _form(problem: Problem) -> QPForm:
    if problem.qp is None:
        raise ValueError(f"{problem.name} is not a QP")
    return problem.qp


def _moreau(setting: Setting) -> Call:
    """A QP hand-written for Moreau: all entries of P, and the rows of A above those of G."""
    import moreau
    import moreau.torch

    form = _form(setting.problem)
    first = form.data(*setting.problem.theta(setting.batch, seed=0)).expanded()
    n, m, p = first.P.shape[1], first.G.shape[1], first.A.shape[1]

    def rows(qp: Any) -> torch.Tensor:
        return torch.cat([qp.A, qp.G], dim=1)

    # Omit entries that are zero in all draws.
    used_P, used_A = (first.P != 0).any(0), (rows(first) != 0).any(0)
    used_P = used_P | used_P.T
    pattern = [part for used in (used_P, used_A) for part in _csr(used)]
    cones = moreau.Cones(num_zero_cones=p, num_nonneg_cones=m)
    solver = moreau.torch.Solver(n, m + p, *pattern, cones=cones, settings=moreau_settings("auto", setting.batch))

    def call(theta: Tensors) -> Tensors:
        qp = form.data(*theta).expanded()
        P, A = qp.P[:, used_P].contiguous(), rows(qp)[:, used_A].contiguous()
        b = torch.cat([qp.b, qp.h], dim=1)
        return form.outputs(solver.solve(P, A, qp.q, b).x)

    return call


def _csr(used: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Row pointers and column indices of a mask."""
    pointers = torch.nn.functional.pad(used.sum(1).cumsum(0), (1, 0))
    return pointers, used.nonzero()[:, 1].contiguous()


def _proxsuite(setting: Setting) -> Call:
    from proxsuite.torch import qplayer

    # proxsuite uses half of the cores that it sees; this gives it the same number of threads as the others.
    qplayer.os = SimpleNamespace(cpu_count=lambda: 2 * setting.threads)
    form = _form(setting.problem)
    solve = qplayer.QPFunction(eps=ACCURACY, eps_backward=ACCURACY, omp_parallel=setting.threads > 1)

    def call(theta: Tensors) -> Tensors:
        qp = form.data(*theta).expanded()
        return form.outputs(solve(qp.P, qp.q, qp.A, qp.b, qp.G, torch.full_like(qp.h, -1e20), qp.h)[0])

    return call


def _qpth(setting: Setting) -> Call:
    from qpth.qp import QPFunction

    form = _form(setting.problem)
    solve = QPFunction(eps=1e-12, verbose=-1, maxIter=100, check_Q_spd=False)

    def call(theta: Tensors) -> Tensors:
        qp = form.data(*theta).expanded()
        equal = (qp.A, qp.b) if qp.A.shape[1] else (torch.empty(0, dtype=torch.float64),) * 2
        return form.outputs(solve(qp.P, qp.q, qp.G, qp.h, *equal))

    return call


def _libdqp(setting: Setting) -> Call:
    from dqp import dQP

    form = _form(setting.problem)
    layer = dQP.dQP_layer(
        settings=dQP.build_settings(
            solve_type="dense", qp_solver="daqp", lin_solver="scipy LU", eps_abs=ACCURACY, eps_active=1e-6
        )
    )

    def call(theta: Tensors) -> Tensors:
        qp = form.data(*theta).expanded()
        arguments = (qp.P, qp.q, qp.G, qp.h) + ((qp.A, qp.b) if qp.A.shape[1] else ())
        if setting.batch == 1:  # libdqp expects a single element without a batch axis
            return form.outputs(layer(*(t[0] for t in arguments))[0].reshape(1, -1))
        return form.outputs(layer(*arguments)[0])

    return call


def _diffapqp(setting: Setting) -> Call:
    from diffapqp import Layer

    form = _form(setting.problem)
    qp = form.data(*setting.problem.theta(1, seed=0)).expanded()
    P, G, A = (t[0].detach().numpy() for t in (qp.P, qp.G, qp.A))
    n, m, p = P.shape[0], G.shape[0], A.shape[0]
    x = cp.Variable(n, name="x")
    vectors = {"q": cp.Parameter(n, name="q"), "h": cp.Parameter(m, name="h")}
    constraints = [G @ x <= vectors["h"]]
    if p:
        vectors["b"] = cp.Parameter(p, name="b")
        constraints.append(A @ x == vectors["b"])
    objective = 0.5 * cp.quad_form(x, cp.psd_wrap(P)) + vectors["q"] @ x
    layer = Layer(cp.Problem(cp.Minimize(objective), constraints), max_n_cores=setting.threads)
    setting.cleanup.callback(layer.close)
    options = {"tol_gap_abs": ACCURACY, "tol_gap_rel": ACCURACY, "tol_feas": ACCURACY}
    derivative = {"reduced_kkt": True, "mode": "spsolve"}  # the default, LSQR, has errors of 1e-3

    def call(theta: Tensors) -> Tensors:
        qp = form.data(*theta).expanded()
        given = {name: getattr(qp, name) for name in vectors}
        return form.outputs(layer(given, solver="CLARABEL", solver_args=options, **derivative)[0]["x"])

    return call


def _is_qp(problem: Problem) -> str | None:
    return None if problem.qp is not None else "not a QP, or too large for dense matrices"


def _fixed(problem: Problem) -> str | None:
    if problem.qp is not None and not problem.qp.fixed_matrices:
        return "its matrices depend on parameters"
    return _is_qp(problem)


QP_PEERS = (
    Contestant("moreau-qp", ("moreau", "moreau.torch"), _is_qp, _moreau),
    Contestant("proxsuite", ("proxsuite", "proxsuite.torch.qplayer"), _is_qp, _proxsuite),
    Contestant("qpth", ("qpth", "qpth.qp"), _is_qp, _qpth),
    Contestant("libdqp", ("dqp", "qpsolvers", "daqp"), _is_qp, _libdqp),
    Contestant("diffapqp", ("diffapqp",), _fixed, _diffapqp),
)
