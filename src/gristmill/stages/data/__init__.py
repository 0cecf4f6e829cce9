"""Data: files become an immutable, masked, split and content-hashed dataset version."""
