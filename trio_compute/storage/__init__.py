"""Clients of Neon's storage and control plane."""
