"""The gateway: one paid request, top to bottom, without a web framework."""
