"""The parts of a detector: what turns a backbone into maps, and the heads behind them."""
