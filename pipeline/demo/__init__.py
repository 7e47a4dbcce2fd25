"""The demo: a whole pipeline on a real Kafka, one worker killed in the middle, and an account of every record read back from the topics."""
