"""Consumer groups without a server: committed offsets, membership, assignment."""
