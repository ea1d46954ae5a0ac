"""What applications hold: stores, producers, consumers, transactions."""
