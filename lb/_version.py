"""The one place where the version stands; the distribution is built with it."""

__version__ = "0.2.0.dev0"
