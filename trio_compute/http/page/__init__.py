"""The status page: three files that become one document, and the drawing of the states."""
