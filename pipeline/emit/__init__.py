"""The producing side: recorder, publisher, importers, and the simulated fleet of agents."""
