"""Training a phase, crossing a boundary, and what a run writes down."""
