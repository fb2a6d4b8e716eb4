"""Status, events, transitions and the one owner of the state."""
