"""One file per kind of pattern: each a function from a Scene to an Accusation, or None."""
