"""Serving: engine children, their supervision and the switch between deployments; enter by `supervisor`."""
