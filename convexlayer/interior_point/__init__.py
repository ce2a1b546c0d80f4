"""The batched interior-point engine: many programs of one structure in lock step."""
