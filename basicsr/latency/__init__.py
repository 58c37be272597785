"""Latency as a measurement: candidates timed in turn, and the file of figures from this and other devices."""
