"""The fault plan on real Kafka: three nodes, worker processes, faults under load, and a checker that reads the topics.

`python -m tests.fault` (make fault) runs the rows and writes docs/faults.md.
"""
