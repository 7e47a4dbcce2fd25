"""Simulated histories of job queues."""
