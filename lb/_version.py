"""The one place where the version stands; the distribution is built with it."""

__version__ = "0.1.0"
