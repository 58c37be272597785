"""Files in which a trained network leaves the framework, each checked by running it."""
