"""What a run needs around the loop: checkpoints, schedules, processes, logging, validation."""
