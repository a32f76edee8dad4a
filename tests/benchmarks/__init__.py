"""What things cost, by commands that print it."""
