"""Pricing plug-in: the same price for every unit."""
