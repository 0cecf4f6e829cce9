"""HTTP: the OpenAI-compatible surface, the operator's surface, and what starts and stops them."""
