"""The one LightningModule, the run, its checkpoints, precision, compilation, loggers and pictures."""
