"""Our side: what `benchmarks/ours/worker.py` prepares and runs in a process of its own."""
