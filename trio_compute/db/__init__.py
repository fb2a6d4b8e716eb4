"""SQL over Trio."""
