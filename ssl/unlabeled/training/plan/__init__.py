"""The plan of a run, made and checked before its first step."""
