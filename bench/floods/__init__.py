"""Floods and abuse: how each is made, and what it costs those who are served meanwhile (docs/floods.md)."""
