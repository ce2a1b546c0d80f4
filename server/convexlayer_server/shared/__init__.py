"""Data structures and inter-process messages that several parts of the service use."""
