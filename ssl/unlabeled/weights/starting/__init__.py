"""What a run starts from: files, runs, and weights of other libraries."""
