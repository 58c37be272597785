"""How LR images are made of HR images while training: one class to a step, found by its name in the options."""
