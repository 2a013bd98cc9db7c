"""Sources of text -> documents -> tokens -> shards and an index."""
