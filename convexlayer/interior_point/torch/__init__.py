"""The interior-point method on dense torch tensors: all elements of a batch in lock step, on any torch device."""
