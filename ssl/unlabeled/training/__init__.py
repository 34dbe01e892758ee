"""Trains: the LightningModule, the run, checkpoints, precision, compilation, loggers and pictures."""
