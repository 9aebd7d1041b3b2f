"""Upstream Merbridge as the kind lab's dataplane: put in, started, mended, watched, taken out."""
