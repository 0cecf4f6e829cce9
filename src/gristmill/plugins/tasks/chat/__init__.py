"""Task `chat`: answer a conversation."""
