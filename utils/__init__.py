"""Collectives, configuration, errors and logging: what every other package may use."""
