"""Batched dense factorisations on torch."""
