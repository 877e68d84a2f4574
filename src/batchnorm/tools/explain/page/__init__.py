"""An explanation as a page to play with: one HTML file that computes in the browser and loads nothing."""

from .assembling import frame, page

__all__ = ["frame", "page"]
