"""The data directory and the postmaster."""
