"""Why a packet goes where it goes: the real graph on a private copy of its memory, and everything around it."""
