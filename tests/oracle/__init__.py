"""Kafka's own tools as the judge of what fastlog writes: see ``kafka.py``."""
