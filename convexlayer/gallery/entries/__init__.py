"""Entries of the gallery, one per module; the name of the module is that of the entry."""
