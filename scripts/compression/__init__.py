"""The parts of scripts/compress.py: its options, the steps and what is kept of them, trainings, files, the report."""
