"""Programs: a forward pass recorded once and replayed by the native loop."""
