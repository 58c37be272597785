"""The parts of scripts/compare_methods.py: the plan, records of how far each run is, execution, and tables."""
