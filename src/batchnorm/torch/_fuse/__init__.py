"""Batch norm, residual and activation of a PyTorch model in one call."""
