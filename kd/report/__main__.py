"""Puts studies into one table: python -m kd.report A B."""

from kd.report import comparison

if __name__ == "__main__":
  comparison.main()
