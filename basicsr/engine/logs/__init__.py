"""What a run logs: lines, metrics, images."""
