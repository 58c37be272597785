"""What scripts/make_options.py writes."""
