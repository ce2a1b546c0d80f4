"""Accuracy under scaling: are results correct, or reported as not ok, whatever the units of the data?

Problems with known solutions and derivatives, scaled by powers of ten.

    python -m benchmarks.scales                              all parts, 5,000 draws each
    python -m benchmarks.scales separable --draws 500 --solvers auto clarabel --only exp poisson --k 1 4
    python -m benchmarks.scales separable --only exp --show 5       prints the first five silent errors, to reproduce
    python -m benchmarks.scales --json scales.json           writes the counts by part, family, range and solver

Parts, each with a module of problems and one that runs them:

- ``separable``: sums of exp, log, inv_pos, power, entropy, kl_div, rel_entr, log_det, norms, squares and the logistic
  function, Poisson regressions, and sums of these, with closed forms. Parameters are log-uniform in 10^-k..10^k,
  independently for each coordinate.
- ``units``: random regular cone programs over all cones, with variables, rows (curved blocks as a whole) and objective
  scaled by units drawn from 10^-k..10^k.
- ``degenerate``: dependent and duplicated rows, empty interiors, weakly active sets, ties and solutions that are not
  unique, scaled in the same way, with a known derivative or none.
- ``public``: quadratic programs with the difficulties of public collections: degenerate, dependent, ill-scaled, large.

A draw is *reported ok* if its status is optimal and every derivative of it is reported ok: one vjp per output, one of a
random combination of all outputs, one jvp (and in ``units`` and ``degenerate`` one vjp of the optimal value). It is
*right* if every output and every derivative has a relative error of at most 1e-6, entry by entry, in its own units (see
``outcome.py``). It is a *silent* error if its status is optimal, a derivative is reported ok, and that derivative or an
output is wrong: there must be none. Cells of the tables are right and reported ok / **silent** / right, not ok /
wrong, not ok. The JSON file also counts silent errors in outputs alone (``silent_outputs``), and draws with status
optimal and wrong outputs, whatever was reported of their derivatives (``wrong_optimal``).

A draw depends only on the seed, the family, the range and its position, not on the number of draws; it is solved in a
batch with others of its family and range. To reproduce one:

    from benchmarks.scales.separable import case
    family, theta, truth = case("half-space, quadratic", 4.0, 1)      # truth.x, truth.J
    solved = SolutionMap(family.program(), solver="clarabel").solve(theta)

    from benchmarks.scales import degenerate, programs, units         # raw programs, scaled by units
    family = next(f for f in degenerate.FAMILIES if f.name == "relu at 0")
    drawn = degenerate.draw(family, 10, seed=0)                      # x, y, w, A ... in their own units
    scales = units.units(drawn, 4.0, seed=0)
    theta = [v * u for v, u in zip(drawn.theta(), drawn.units_of(scales))]
    SolutionMap(programs.parametric(drawn, degenerate.visible_outputs(family, drawn), duals=False)).solve(theta)

``tests/scales`` runs a few draws of each, asserts the requirements, and prints the same tables.
"""
