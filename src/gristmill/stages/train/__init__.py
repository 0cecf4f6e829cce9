"""Training: durable runs in child processes, with checkpoints, fences and caps."""
