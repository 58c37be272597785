"""Optimizers, learning rate schedules, the moving average of weights."""
