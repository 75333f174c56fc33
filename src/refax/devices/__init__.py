"""Models on many devices: made there, laid out by patterns, and seen."""
