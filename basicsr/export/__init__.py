"""Files in which a trained network leaves the framework: safetensors, ONNX and torch.export, each checked by running it."""
