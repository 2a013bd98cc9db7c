"""The door to Ray: clusters, Ray Train, kept-alive workers, the key-value channel."""
