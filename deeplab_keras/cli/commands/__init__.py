"""One module per command, with its options and `main`. scripts/NAME.py runs the command NAME."""
