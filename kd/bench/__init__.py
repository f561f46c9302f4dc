"""Programs that measure us: training, the store of signals, sampled targets."""
