"""Monitors a run: signals of each step, rules, findings in sentences, the state file."""
