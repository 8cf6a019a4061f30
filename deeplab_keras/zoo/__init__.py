"""Released models by name: architecture, weights and classes."""
