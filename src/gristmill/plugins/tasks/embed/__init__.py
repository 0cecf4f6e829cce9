"""The embed task: a text becomes a vector whose angle to others tells likeness."""
