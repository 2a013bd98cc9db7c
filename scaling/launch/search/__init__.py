"""The door to Ray Tune: searches whose trials are ordinary runs."""
