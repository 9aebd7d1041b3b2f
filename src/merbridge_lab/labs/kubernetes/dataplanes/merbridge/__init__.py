"""Upstream Merbridge as a cluster's dataplane: installed, started, repaired, watched, removed."""
