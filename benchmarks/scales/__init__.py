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

A draw is *told* where its status is optimal and every derivative asked for (one cotangent an output, and a random
combination of all) is ok. It is *right* where every output and every derivative is right to 1e-6, entry by entry, in
its own units (``judge.py`` says how). A draw is *silent* where it is optimal, something is called ok, and that or the
solution is wrong: there must be none. Every draw is reproducible from its seed, family, range and position alone, and a
draw is solved in a batch with others of its family and range.
"""
