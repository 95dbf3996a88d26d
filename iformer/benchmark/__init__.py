"""Models measured side by side: latency, memory, share of the peak."""
