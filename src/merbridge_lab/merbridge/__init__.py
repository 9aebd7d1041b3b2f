"""Upstream Merbridge, read from outside: its output, its trace, its maps, and the arguments that control it."""
