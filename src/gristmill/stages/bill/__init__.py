"""Billing: rating, invoices and their PDF."""
