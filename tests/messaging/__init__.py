"""Topics, producers, groups and transactions: what fastlog does above single partitions."""
