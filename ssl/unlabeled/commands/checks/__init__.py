"""What a key may be, read from the signature that takes it, and whether a value and this machine are so. No torch."""
