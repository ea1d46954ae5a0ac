"""The command line, the demo behind it, and the example programs."""
