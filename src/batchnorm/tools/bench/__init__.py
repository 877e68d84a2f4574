"""Timings that a sceptic can check: verified first, in turn with copies of the same tensor and with other libraries."""
