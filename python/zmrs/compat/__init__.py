"""Adapters with the names and arguments of other programs, so that these change one import."""
