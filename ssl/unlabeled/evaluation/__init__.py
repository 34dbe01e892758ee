"""Extracts frozen features, runs the probes on them and writes the report."""
