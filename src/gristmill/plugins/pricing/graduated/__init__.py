"""Pricing plug-in: each tier of a period's quantity has its own price."""
