"""Peers that take CVXPY problems or cone programs."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.canonical import ConeMap
from benchmarks.contestant import ACCURACY, Call, Contestant, Setting
from benchmarks.problem import Problem, Tensors

__all__ = ["CONIC_PEERS"]


def _cvxpylayers(arguments: dict[str, Any]) -> Any:
    def build(setting: Setting) -> Call:
        from cvxpylayers.torch import CvxpyLayer

        options = {"n_jobs_forward": setting.threads, "n_jobs_backward": setting.threads, **arguments}
        layer = CvxpyLayer(
            setting.problem.problem,
            parameters=setting.problem.parameters,
            variables=setting.problem.variables,
            gp=setting.problem.gp,
            solver_args=options,
        )

        def call(theta: Tensors) -> Tensors:
            return tuple(layer(*theta))

        return call

    return build


def _moreau(solver: str) -> Any:
    def build(setting: Setting) -> Call:
        cones = ConeMap(setting.problem)
        solve = _moreau_solver(cones, setting.batch, solver)

        def call(theta: Tensors) -> Tensors:
            data = cones.data(theta)
            return cones.outputs(solve.solve(data.P, data.A, data.q, data.b).x)

        return call

    return build


def _moreau_solver(cones: ConeMap, batch: int, solver: str) -> Any:
    """Moreau's batched solver for the structure of a cone program, on the CPU."""
    import moreau
    import moreau.torch

    dims = cones.dims
    shape = moreau.Cones(
        num_zero_cones=dims.zero,
        num_nonneg_cones=dims.nonneg,
        so_cone_dims=list(dims.soc),
        psd_dims=list(dims.psd),
        num_exp_cones=dims.exp,
        power_alphas=list(dims.p3d),
    )
    pattern = [torch.from_numpy(part.astype("int64")) for M in (cones.P, cones.A) for part in (M.indptr, M.indices)]
    return moreau.torch.Solver(cones.n, cones.m, *pattern, cones=shape, settings=moreau_settings(solver, batch))


def moreau_settings(solver: str, batch: int) -> Any:
    """Moreau's settings, with tolerance ACCURACY also for its active-set method, whose default is larger."""
    import moreau

    return moreau.Settings(
        solver=solver,
        device="cpu",
        batch_size=batch,
        enable_grad=True,
        ipm_settings=moreau.IPMSettings(tol_gap_abs=ACCURACY, tol_gap_rel=ACCURACY, tol_feas=ACCURACY),
        active_set_settings=moreau.ActiveSetSettings(primal_tol=ACCURACY),
    )


def _any(problem: Problem) -> None:
    return None


CVXPYLAYERS, MOREAU = ("cvxpylayers.torch", "diffcp"), ("moreau", "moreau.torch")
SCS = {"eps_abs": ACCURACY, "eps_rel": ACCURACY, "max_iters": 100_000}
"""Settings of SCS: the accuracy of every peer, and its default limit of iterations."""

CONIC_PEERS = (
    Contestant("cvxpylayers", CVXPYLAYERS, _any, _cvxpylayers(SCS)),
    Contestant("cvxpylayers-clarabel", CVXPYLAYERS, _any, _cvxpylayers({"solve_method": "Clarabel"})),
    Contestant("moreau-ipm", MOREAU, _any, _moreau("ipm")),
    Contestant("moreau-auto", MOREAU, _any, _moreau("auto")),
)
