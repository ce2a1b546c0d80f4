"""The batched primal-dual interior-point method: solves many programs of one structure at once."""
