"""Our own TFDS builders, a file each."""
