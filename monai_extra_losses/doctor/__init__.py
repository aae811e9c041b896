"""Examine a training before it costs hours."""
