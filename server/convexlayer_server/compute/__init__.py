"""The compute backend: it schedules requests on worker processes, and solves and differentiates in them."""
