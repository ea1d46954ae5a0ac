"""What applications hold: the store, its topics, producers, transactions and consumers."""
