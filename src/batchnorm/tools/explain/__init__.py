"""What batch normalization does to your data, with its numbers: the model, and a terminal that shows it."""

from .model import EXAMPLE, Explanation, explain

__all__ = ["EXAMPLE", "Explanation", "explain"]
