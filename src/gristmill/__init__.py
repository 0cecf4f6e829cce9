"""Gristmill: from your data to a paid, monitored model API that you run yourself."""

__version__ = "0.1.0"
