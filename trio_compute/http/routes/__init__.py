"""One file per HTTP path."""
