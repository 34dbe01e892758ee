"""Makes and checks the plan of a run before its first step."""
