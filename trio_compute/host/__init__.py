"""Processes, users and limits of the machine."""
