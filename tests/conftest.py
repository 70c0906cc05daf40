"""Its presence puts this folder on the path: tests import ``sky`` and ``child`` from here."""
