"""Checks of images before a run."""
