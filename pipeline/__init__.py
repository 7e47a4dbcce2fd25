"""The Kafka-native pipeline for AI-agent runs and their background work."""
