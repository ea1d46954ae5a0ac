"""The compiled rooms of the storage engine. Python code outside the engine imports ``fastlog._core`` only."""
