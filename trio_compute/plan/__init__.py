"""Pure decisions: text and statements computed without I/O."""
