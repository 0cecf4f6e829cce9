"""Meter: rate limits, quotas and the holds that keep charges within what was set aside."""
