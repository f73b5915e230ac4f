"""What tests and benchmarks stand on: small real servers and clients in place of the world."""
