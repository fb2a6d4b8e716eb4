"""A small local stand-in for Neon's storage that speaks the real protocols."""
