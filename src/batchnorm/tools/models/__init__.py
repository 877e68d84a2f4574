"""The commands for models of PyTorch: what they load, and what is done with it."""
