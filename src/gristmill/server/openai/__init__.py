"""The OpenAI-compatible surface under `/v1`; it translates, the decisions are in `app`."""
