"""Upstream Merbridge, read from outside: what it prints, traces and keeps in its maps; how it is told to do so."""
