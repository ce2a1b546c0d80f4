"""The batched primal-dual interior-point method: many programs of one structure at a time."""
