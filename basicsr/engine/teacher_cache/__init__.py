"""Caches of a teacher's outputs: making one, and checking that it fits a run."""
