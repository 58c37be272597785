"""The rows of scripts/device_table.py: what they are, how they are made, and the tables of them."""
