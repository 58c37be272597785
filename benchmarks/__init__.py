"""What this framework costs in time and memory, held against what a user has without it."""
