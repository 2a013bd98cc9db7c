"""Architectures of other libraries, one module each: settings and names, both ways."""
