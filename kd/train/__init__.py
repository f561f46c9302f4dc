"""Arms x seeds in one compiled program."""
