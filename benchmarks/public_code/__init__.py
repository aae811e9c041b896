"""Traps of public loss code: each library's own value beside the right one, and what equals what."""
