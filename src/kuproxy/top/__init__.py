"""`ku top`: what the running daemon does, live on a terminal."""
