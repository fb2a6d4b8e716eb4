"""What must be done to bring roles, databases and extensions to the wanted state: pure planning (contract 05)."""
