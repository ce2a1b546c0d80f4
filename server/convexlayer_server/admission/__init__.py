"""Admission control: API keys, rate limits, usage, memory budget, and the queue in front of the compute backend."""
