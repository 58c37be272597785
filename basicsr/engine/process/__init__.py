"""Processes of a run: ranks, locks, signals, exit codes."""
