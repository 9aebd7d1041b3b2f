"""The embedded lab: one Linux machine, root, nothing else. driver.py opens it."""
