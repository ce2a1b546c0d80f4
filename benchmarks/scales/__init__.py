"""Is it right at every scale, or does it say so? Problems in all units, with solutions and derivatives that are known.

    python -m benchmarks.scales                              everything, 5,000 draws of each part
    python -m benchmarks.scales separable --draws 500 --solvers auto clarabel --only exp poisson --k 1 4
    python -m benchmarks.scales separable --only exp --show 5       the first five silent draws, to be tried again
    python -m benchmarks.scales --json scales.json           the counts, by part, family, range and solver

Parts, each a module with its problems and one that runs them:

- ``separable``: sums of exp, log, inv_pos, power, entropy, kl_div, rel_entr, log_det, norms, squares and the logistic
  function, Poisson regressions, and sums of different ones, with closed forms. Parameters are log-uniform in
  10^-k..10^k, drawn for each coordinate.
- ``units``: random regular cone programs over all cones, their variables, rows (curved blocks as a whole) and objective
  in units drawn from 10^-k..10^k.
- ``degenerate``: dependent and duplicated rows, empty interiors, weakly active sets, ties and solutions that are not
  unique, in the same units: has a derivative (this one) or has none.
- ``public``: quadratic programs with the faults of public collections: degenerate, dependent, badly scaled, large.

A draw is *told* where its status is optimal and every derivative asked for is ok: one vjp an output, one of a random
combination of all, one jvp (and in ``units`` and ``degenerate`` one vjp of the optimal value). It is *right* where
every output and every derivative is right to 1e-6, entry by entry, in its own units (``judge.py`` says how). It is
*silent* where it is optimal, something is called ok, and that or an output is wrong: there must be none. Cells of the
tables are right and told / **silent** / right but not told / wrong and told so; the JSON also has silent draws in which
outputs alone are wrong (``silent_outputs``), and draws with wrong outputs that are called optimal, whatever was said of
their derivatives (``wrong_optimal``).

Draws depend on the seed, the family, the range and their position alone, not on how many there are; they are solved in
batches with others of their family and range. One of them again:

    from benchmarks.scales.separable import case
    family, theta, truth = case("half-space, quadratic", 4.0, 1)      # truth.x, truth.J
    solved = SolutionMap(family.program(), solver="clarabel").solve(theta)

    from benchmarks.scales import degenerate, programs, units         # of raw programs, in units
    family = next(f for f in degenerate.FAMILIES if f.name == "relu at 0")
    drawn = degenerate.drawn(family, 10, seed=0)                      # x, y, w, A ... in their own units
    scales = units.units(drawn, 4.0, seed=0)
    theta = [v * u for v, u in zip(drawn.theta(), drawn.units_of(scales))]
    SolutionMap(programs.parametric(drawn, degenerate.seen(family, drawn), duals=False)).solve(theta)

``tests/scales`` takes a few draws of each, asserts what is demanded, and prints the same tables.
"""
