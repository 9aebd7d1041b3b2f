"""Upstream Merbridge as the kind lab's dataplane: installed, started, repaired, watched, removed."""
