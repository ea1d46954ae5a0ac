"""What applications use of a store: producers, transactions, consumers, and the store itself."""
