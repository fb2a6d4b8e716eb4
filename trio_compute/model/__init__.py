"""Wire types and identifiers."""
