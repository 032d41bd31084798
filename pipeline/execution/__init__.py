"""The run on Ray: preparation, engine actors, source, sink and cluster."""
