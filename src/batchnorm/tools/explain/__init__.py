"""What batch normalization does to your data, with its numbers: the model, and a terminal that shows it."""

from .facts import EXAMPLE
from .model import Explanation, explain

__all__ = ["EXAMPLE", "Explanation", "explain"]
