"""The commands of `space_core/__main__.py`, one file each: what it takes, and a function that does it."""
