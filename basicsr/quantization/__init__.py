"""Networks with quantised weights and activations: simulated in training, calibrated, and as graphs for runtimes."""
