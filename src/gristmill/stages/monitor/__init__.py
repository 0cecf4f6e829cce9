"""Monitoring: what it earns and costs, and the trace of any request."""
