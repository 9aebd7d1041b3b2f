"""`merlab bench`: how fast requests are by the rules and by eBPF, measured side by side in interleaved rounds."""
