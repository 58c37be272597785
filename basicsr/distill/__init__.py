"""What a student learns from a teacher: `base` states the contract, then one method per file."""
