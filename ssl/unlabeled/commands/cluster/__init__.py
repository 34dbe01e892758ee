"""The command that clusters images: two trainings, one on from the other."""
