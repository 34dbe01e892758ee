"""Steps whose loss or gradient is not finite: skipped, named, recorded and replayed."""
