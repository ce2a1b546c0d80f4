"""Reliability of the service under load, attacks and failures: a table of targets and measurements."""
