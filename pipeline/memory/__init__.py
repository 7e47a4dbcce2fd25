"""A Kafka cluster in memory for tests and simulations: `memory://name`, virtual time, faults on request."""
