"""The version, which the build, the tools and the package itself read here."""

__version__ = "0.1.0"
