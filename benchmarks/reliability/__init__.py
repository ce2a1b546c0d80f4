"""How the service bears load and misfortune: a table of targets and figures."""
