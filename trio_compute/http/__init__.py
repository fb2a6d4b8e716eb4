"""The two HTTP servers."""
