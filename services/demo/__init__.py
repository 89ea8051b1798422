"""The whole mesh on one machine: ``make demo``."""
