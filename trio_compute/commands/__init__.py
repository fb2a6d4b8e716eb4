"""Sub-commands of `trio-compute` that run no compute."""
