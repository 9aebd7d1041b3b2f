"""The labs, a package each; selection.py decides which one a command means."""
