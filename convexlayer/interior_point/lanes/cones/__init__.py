"""The cones of the interior-point method in lanes: a module each, with the functions of ``block``, and their table."""
