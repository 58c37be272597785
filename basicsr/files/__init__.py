"""Bytes on disk: images, lists, databases, checkpoints; written whole or not at all, read with bounds."""
