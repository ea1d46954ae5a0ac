"""The cold half of a partition: its state files, recovery, verification and repair. Nothing here runs per append."""
