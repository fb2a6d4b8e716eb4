"""Long-running children of the services nursery."""
