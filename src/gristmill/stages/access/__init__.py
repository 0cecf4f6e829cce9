"""Access: customers, their keys, plans and subscriptions, and who a key speaks for."""
