"""Thin wrappers around one thing each: a command, a kernel interface, a file format."""
