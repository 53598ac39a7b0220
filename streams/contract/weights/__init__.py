"""Model weights as bytes: in a round, and from one version to the next."""
