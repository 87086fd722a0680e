"""Measurement: baselines, and scripts that print every figure that the README quotes."""
