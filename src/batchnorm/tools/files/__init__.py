"""Tables and arrays in and out of files; larger than memory where the kind allows it, and written atomically."""

from .data import Data, Reading
from .gathering import Gathering, gather_files
from .normalizing import Request, normalize_file
from .opening import open_data
from .refused import Refused

__all__ = ["Data", "Gathering", "Reading", "Refused", "Request", "gather_files", "normalize_file", "open_data"]
