"""Names of tensors in other libraries, and ours."""
